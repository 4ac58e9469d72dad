//! What the process tells of itself, a line for each step.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, Result, bail};
use mantel::store::{Grant, GrantState};

/// How the store has a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    Live,
    /// Whether the one try was made.
    InDoubt {
        retried: bool,
    },
    Ended {
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The store has it so, before the process does anything; at the end: after everything.
    Held {
        number: u32,
        generation: i64,
        held: Held,
    },
    /// All that is held has been told; work begins when the parent says so.
    Ready,
    /// A caller asks; a refresh is needed.
    Asked {
        number: u32,
        generation: i64,
    },
    /// The EHR's answer to the token of that generation has come, and nobody has it yet.
    Received {
        number: u32,
        generation: i64,
    },
    /// A caller has a bearer.
    Shared {
        number: u32,
        generation: i64,
    },
    Ended {
        number: u32,
        reason: String,
    },
    /// A caller has none.
    Failed {
        number: u32,
        fault: String,
    },
    /// No grant is in doubt any more.
    Settled,
}

impl Line {
    pub fn held(number: u32, grant: &Grant) -> Self {
        let held = match grant.state {
            GrantState::Live => Held::Live,
            GrantState::InDoubt { retried, .. } => Held::InDoubt { retried },
            GrantState::Ended { reason, .. } => Held::Ended { reason: reason.text().to_owned() },
        };
        Self::Held { number, generation: grant.generation, held }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { number, generation, held } => {
                write!(f, "held {number} {generation} ")?;
                match held {
                    Held::Live => f.write_str("live"),
                    Held::InDoubt { retried: false } => f.write_str("in-doubt"),
                    Held::InDoubt { retried: true } => f.write_str("retried"),
                    Held::Ended { reason } => write!(f, "ended {reason}"),
                }
            }
            Self::Ready => f.write_str("ready"),
            Self::Asked { number, generation } => write!(f, "asked {number} {generation}"),
            Self::Received { number, generation } => write!(f, "received {number} {generation}"),
            Self::Shared { number, generation } => write!(f, "shared {number} {generation}"),
            Self::Ended { number, reason } => write!(f, "ended {number} {reason}"),
            Self::Failed { number, fault } => write!(f, "failed {number} {fault}"),
            Self::Settled => f.write_str("settled"),
        }
    }
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.splitn(4, ' ');
        let mut word = || words.next().with_context(|| format!("{text:?} is cut"));
        let kind = word()?;
        Ok(match kind {
            "ready" => Self::Ready,
            "settled" => Self::Settled,
            "held" => {
                let (number, generation) = (word()?.parse()?, word()?.parse()?);
                let held = match word()? {
                    "live" => Held::Live,
                    "in-doubt" => Held::InDoubt { retried: false },
                    "retried" => Held::InDoubt { retried: true },
                    other => match other.strip_prefix("ended ") {
                        Some(reason) => Held::Ended { reason: reason.to_owned() },
                        None => bail!("{text:?} tells of no state"),
                    },
                };
                Self::Held { number, generation, held }
            }
            "asked" => Self::Asked { number: word()?.parse()?, generation: word()?.parse()? },
            "received" => Self::Received { number: word()?.parse()?, generation: word()?.parse()? },
            "shared" => Self::Shared { number: word()?.parse()?, generation: word()?.parse()? },
            "ended" => Self::Ended { number: word()?.parse()?, reason: word()?.to_owned() },
            "failed" => {
                let number = word()?.parse()?;
                Self::Failed { number, fault: text.splitn(3, ' ').nth(2).unwrap_or_default().to_owned() }
            }
            _ => bail!("{text:?} is none of this program's lines"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let held = |held| Line::Held { number: 7, generation: 3, held };
        for line in [
            held(Held::Live),
            held(Held::InDoubt { retried: false }),
            held(Held::InDoubt { retried: true }),
            held(Held::Ended { reason: "lost_rotation".into() }),
            Line::Ready,
            Line::Asked { number: 1, generation: 2 },
            Line::Received { number: 1, generation: 2 },
            Line::Shared { number: 1, generation: 2 },
            Line::Ended { number: 1, reason: "dead".into() },
            Line::Failed { number: 1, fault: "Unavailable { retry_after: 1s }".into() },
            Line::Settled,
        ] {
            assert_eq!(line.to_string().parse::<Line>().unwrap(), line);
        }
        for bad in ["", "held 7 3", "asked x 1", "held 1 1 odd", "else"] {
            assert!(bad.parse::<Line>().is_err(), "{bad}");
        }
    }
}
