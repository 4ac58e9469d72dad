//! Every end of a refresh is known: one table, answer × attempt × is the old access token alive → what
//! the caller sees, what is stored, what is counted, when the next try is (`custody.md`). `OUTCOMES.md` is this table as
//! people read it, written by a test.

use mantel_adapters::profile::Meaning;

use super::machine::Cause;
use crate::store::EndReason;

/// What came of a token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Tokens,
    Refused(Meaning),
    /// Refused as dead, and not believed yet (`deaths`).
    Presumed,
    /// The same of a registration that is suspect.
    Suspect,
    /// Certainly not sent: no connection was made.
    NotSent,
    /// Sent, or perhaps sent, and not answered.
    Unknown,
}

/// Which request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// An ordinary one.
    First,
    /// After an unknown outcome, while the vendor repeats its answer (`reuse_grace`).
    InGrace,
    /// After an unknown outcome, the one try that is left.
    Last,
}

/// What who waits for the refresh is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    New,
    Old,
    Unavailable,
    Ended(EndReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The tokens, by compare-and-set on the generation they consumed.
    Answer,
    /// The intent is cleared.
    Abandoned,
    /// The intent stays: the grant is in doubt.
    Intent,
    /// The grant's end, by the same compare-and-set, after the store was read again.
    End(EndReason),
}

/// What a refresh came to: a closed set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefreshOutcome {
    Renewed,
    Dead,
    /// Refused as dead, which is not believed yet.
    Presumed,
    /// Refused as dead, like too many of its registration.
    Suspect,
    Passing,
    Misconfigured,
    Suspended,
    NotSent,
    InDoubt,
    LostRotation,
    /// Another process had renewed it before.
    Moved,
    /// It was renewed, and the grant had moved on or ended: the new tokens are revoked at the EHR.
    Dropped,
    /// The store did not answer: nothing was sent.
    StoreAway,
}

impl RefreshOutcome {
    pub const ALL: [Self; 13] = [
        Self::Renewed,
        Self::Dead,
        Self::Presumed,
        Self::Suspect,
        Self::Passing,
        Self::Misconfigured,
        Self::Suspended,
        Self::NotSent,
        Self::InDoubt,
        Self::LostRotation,
        Self::Moved,
        Self::Dropped,
        Self::StoreAway,
    ];

    pub const fn text(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Dead => "dead",
            Self::Presumed => "presumed_dead",
            Self::Suspect => "suspect",
            Self::Passing => "passing",
            Self::Misconfigured => "misconfigured",
            Self::Suspended => "suspended",
            Self::NotSent => "not_sent",
            Self::InDoubt => "in_doubt",
            Self::LostRotation => "lost_rotation",
            Self::Moved => "moved",
            Self::Dropped => "dropped",
            Self::StoreAway => "store_away",
        }
    }
}

/// When the next try is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// When the new token falls due.
    WhenDue,
    /// After a backoff with full jitter, not before the answer's `Retry-After`.
    Backoff(Cause),
    /// As `custody.md`, "Unknown outcomes", says.
    Doubt,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub caller: Caller,
    pub stored: Stored,
    pub counted: RefreshOutcome,
    pub next: Next,
}

/// The table. `alive`: whether the old access token still serves.
pub const fn row(answer: Answer, attempt: Attempt, alive: bool) -> Row {
    use RefreshOutcome as Counted;
    let old = if alive { Caller::Old } else { Caller::Unavailable };
    match answer {
        Answer::Tokens => {
            Row { caller: Caller::New, stored: Stored::Answer, counted: Counted::Renewed, next: Next::WhenDue }
        }
        Answer::Refused(Meaning::Dead) => match attempt {
            Attempt::First => end(EndReason::Dead, Counted::Dead),
            Attempt::InGrace | Attempt::Last => end(EndReason::LostRotation, Counted::LostRotation),
        },
        Answer::Presumed => held(old, attempt, Counted::Presumed, Cause::Presumed),
        Answer::Suspect => held(old, attempt, Counted::Suspect, Cause::Suspect),
        Answer::Refused(Meaning::Passing) => held(old, attempt, Counted::Passing, Cause::Passing),
        Answer::Refused(Meaning::Misconfigured) => held(old, attempt, Counted::Misconfigured, Cause::Misconfigured),
        Answer::Refused(Meaning::Suspended) => held(old, attempt, Counted::Suspended, Cause::Suspended),
        Answer::NotSent => held(old, attempt, Counted::NotSent, Cause::Passing),
        Answer::Unknown => match attempt {
            Attempt::First => Row { caller: old, stored: Stored::Intent, counted: Counted::InDoubt, next: Next::Doubt },
            Attempt::InGrace => Row {
                caller: old,
                stored: Stored::Intent,
                counted: Counted::InDoubt,
                next: Next::Backoff(Cause::Passing),
            },
            // The old token was to be tried exactly once.
            Attempt::Last => end(EndReason::LostRotation, Counted::LostRotation),
        },
    }
}

const fn held(caller: Caller, attempt: Attempt, counted: RefreshOutcome, cause: Cause) -> Row {
    let stored = match attempt {
        // Of the last try it clears only that it was made; the doubt before it stays.
        Attempt::First | Attempt::Last => Stored::Abandoned,
        Attempt::InGrace => Stored::Intent,
    };
    Row { caller, stored, counted, next: Next::Backoff(cause) }
}

const fn end(reason: EndReason, counted: RefreshOutcome) -> Row {
    Row { caller: Caller::Ended(reason), stored: Stored::End(reason), counted, next: Next::Never }
}

#[cfg(test)]
pub const ATTEMPTS: [Attempt; 3] = [Attempt::First, Attempt::InGrace, Attempt::Last];

#[cfg(test)]
pub const ANSWERS: [Answer; 9] = [
    Answer::Tokens,
    Answer::Refused(Meaning::Dead),
    Answer::Presumed,
    Answer::Suspect,
    Answer::Refused(Meaning::Passing),
    Answer::Refused(Meaning::Misconfigured),
    Answer::Refused(Meaning::Suspended),
    Answer::NotSent,
    Answer::Unknown,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> impl Iterator<Item = (Answer, Attempt, bool, Row)> {
        ANSWERS.into_iter().flat_map(|answer| {
            ATTEMPTS.into_iter().flat_map(move |attempt| {
                [true, false].map(|alive| (answer, attempt, alive, row(answer, attempt, alive)))
            })
        })
    }

    #[test]
    fn only_a_refusal_or_a_second_unknown_ends_a_grant() {
        for (answer, attempt, _, row) in rows() {
            let may_end =
                answer == Answer::Refused(Meaning::Dead) || (answer == Answer::Unknown && attempt == Attempt::Last);
            assert_eq!(matches!(row.stored, Stored::End(_)), may_end, "{answer:?} {attempt:?}");
            assert_eq!(matches!(row.caller, Caller::Ended(_)), may_end);
        }
    }

    #[test]
    fn a_living_token_serves_through_every_trouble() {
        for (answer, attempt, alive, row) in rows() {
            if !matches!(row.stored, Stored::End(_)) && answer != Answer::Tokens {
                assert_eq!(row.caller, if alive { Caller::Old } else { Caller::Unavailable }, "{answer:?} {attempt:?}");
            }
        }
    }

    #[test]
    fn a_doubt_is_never_written_off_as_live() {
        for (answer, attempt, _, row) in rows() {
            if attempt == Attempt::InGrace {
                assert_ne!(row.stored, Stored::Abandoned, "{answer:?}");
            }
        }
        assert_eq!(row(Answer::Unknown, Attempt::First, true).stored, Stored::Intent);
        assert_eq!(row(Answer::Refused(Meaning::Dead), Attempt::Last, true).counted, RefreshOutcome::LostRotation);
    }
}
