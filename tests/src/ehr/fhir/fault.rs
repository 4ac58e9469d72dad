//! What can go wrong, before a vendor puts it into its own words.

use http::StatusCode;
use serde_json::Value;

#[derive(Clone, Debug)]
pub enum Fault {
    NoToken,
    BadToken,
    /// The token's scopes do not open this type for this interaction.
    NoScope(String),
    /// The resource exists, or does not; the bearer may not know.
    Hidden {
        ty: String,
        id: String,
    },
    /// A write or a search that reaches beyond what the bearer may touch.
    Refused,
    UnknownPath,
    UnknownType(String),
    /// The vendor does not offer this interaction.
    Unsupported(&'static str),
    NotFound {
        ty: String,
        id: String,
    },
    Gone {
        ty: String,
        id: String,
    },
    /// A patient that was merged into another.
    Merged {
        into: String,
    },
    Unacceptable,
    MediaType,
    Malformed(String),
    Parameter {
        name: String,
        reason: String,
    },
    UnknownParameters {
        method: &'static str,
        ty: String,
        names: Vec<String>,
    },
    /// None of the combinations that this type's searches need.
    Needs {
        ty: String,
        combinations: &'static [&'static [&'static str]],
    },
    /// athenaOne: no practice, or one whose slash was encoded.
    Practice(String),
    /// athenaOne: another practice than the token's.
    OtherPractice,
    PageGone(String),
    TooMany,
    MatchWanted,
    Stale,
    Several,
    ModifierExtension(String),
    Required {
        ty: String,
        element: &'static str,
    },
    Invalid(String),
    /// Issues a vendor has already written.
    Issues(StatusCode, Vec<Value>),
}
