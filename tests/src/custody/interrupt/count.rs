//! At which instant a refresh was cut, from what three witnesses know: the process's own lines, the EHR's ledger, and
//! the store as the next process found it.

use std::fmt;

use serde::Serialize;

use super::endpoint::Request;

/// Where a refresh stood when its process was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Instant {
    /// A caller waits, and the store has no intent.
    BeforeIntent,
    /// The intent is durable; the EHR has had no request, nor has it come since.
    IntentNotSent,
    /// The EHR has the request, and has done nothing; nor has it since.
    SentNotRotated,
    /// The EHR has the request and burns the token, before the kill or after it; the answer has not left.
    RotatedNotAnswered,
    /// The answer has left the EHR, and the process has not got hold of it.
    AnsweredNotReceived,
    /// The process has the answer, and it is not durable.
    ReceivedNotStored,
    /// The answer is durable, and the caller has not seen it.
    StoredNotShared,
}

impl Instant {
    pub const ALL: [Self; 7] = [
        Self::BeforeIntent,
        Self::IntentNotSent,
        Self::SentNotRotated,
        Self::RotatedNotAnswered,
        Self::AnsweredNotReceived,
        Self::ReceivedNotStored,
        Self::StoredNotShared,
    ];

    /// Whether the EHR has had the token, and the store does not know what came of it.
    pub const fn sent(self) -> bool {
        matches!(self, Self::SentNotRotated) || self.burnt()
    }

    /// Whether the EHR has burnt the token that the store holds.
    pub const fn burnt(self) -> bool {
        matches!(self, Self::RotatedNotAnswered | Self::AnsweredNotReceived | Self::ReceivedNotStored)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BeforeIntent => "before the intent",
            Self::IntentNotSent => "intent durable, not sent",
            Self::SentNotRotated => "sent, not acted upon",
            Self::RotatedNotAnswered => "token burnt, not answered",
            Self::AnsweredNotReceived => "answered, not received",
            Self::ReceivedNotStored => "received, not durable",
            Self::StoredNotShared => "durable, not shared",
        })
    }
}

/// What is known of a grant at the kill.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// A caller asked and has no answer.
    pub waits: bool,
    /// The token request of this life with the generation that the store had at its beginning.
    pub request: Option<&'a Request>,
    /// The process said that it has the answer to it.
    pub received: bool,
    pub stored: Stored,
    pub killed: std::time::Instant,
}

/// The store after the kill, beside how it was when the life began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As it was.
    Same,
    /// An intent, or the mark of the one try, that was not there.
    Intent,
    /// The next generation.
    Next,
}

impl Evidence<'_> {
    /// None: nothing was cut.
    pub fn instant(&self) -> Option<Instant> {
        match self.stored {
            Stored::Next => self.waits.then_some(Instant::StoredNotShared),
            Stored::Same => self.waits.then_some(Instant::BeforeIntent),
            Stored::Intent => Some(match self.request {
                None => Instant::IntentNotSent,
                Some(request) if request.rotated.is_none() && !request.refused => Instant::SentNotRotated,
                Some(_) if self.received => Instant::ReceivedNotStored,
                Some(request) if request.answered.is_some_and(|at| at <= self.killed) => Instant::AnsweredNotReceived,
                Some(_) => Instant::RotatedNotAnswered,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_instant_is_told_from_its_neighbours() {
        let killed = std::time::Instant::now();
        let (before, after) = (killed - Duration::from_millis(1), killed + Duration::from_millis(1));
        let request = |rotated, answered| Request { life: 1, presented: 1, rotated, refused: false, answered };
        let told = |waits, request: Option<&Request>, received, stored| {
            Evidence { waits, request, received, stored, killed }.instant()
        };
        use Instant::*;
        assert_eq!(told(false, None, false, Stored::Same), None, "nobody asked");
        assert_eq!(told(true, None, false, Stored::Same), Some(BeforeIntent));
        assert_eq!(told(false, None, false, Stored::Intent), Some(IntentNotSent), "the wheel's");
        assert_eq!(told(true, Some(&request(None, None)), false, Stored::Intent), Some(SentNotRotated));
        for late in [None, Some(after)] {
            let request = request(Some(after), late);
            assert_eq!(told(true, Some(&request), false, Stored::Intent), Some(RotatedNotAnswered));
        }
        let answered = request(Some(before), Some(before));
        assert_eq!(told(true, Some(&answered), false, Stored::Intent), Some(AnsweredNotReceived));
        assert_eq!(told(true, Some(&answered), true, Stored::Intent), Some(ReceivedNotStored));
        assert_eq!(told(true, Some(&answered), true, Stored::Next), Some(StoredNotShared));
        assert_eq!(told(false, Some(&answered), true, Stored::Next), None, "shared, or nobody waits");
    }
}
