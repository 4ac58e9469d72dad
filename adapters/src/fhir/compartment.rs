//! Whose a resource is: the patient compartment of R4.
//!
//! Only the elements that the compartment names are read, without building the resource in memory. Where
//! two parsers could read different things (repeated members) nothing is decided, and what cannot be
//! decided is refused by the judge.

mod reading;
mod selector;
mod table;

pub(super) use self::reading::is_object;
use self::reading::{Referred, referred};
pub use self::{
    reading::{Head, LocalReference, Unreadable, head, local_reference, provenance_targets},
    selector::{Selector, patient_parameters, patient_value, selects},
};
use super::rewrite::Bases;

/// Whether a resource is within a patient's compartment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belonging {
    Yes,
    No,
    /// It is about no patient: a Practitioner, a ValueSet.
    Shared,
    /// A Binary says nothing of whose it is; only its URL may have been shown to the grant.
    Binary,
    /// Not to be decided from what it holds: refused.
    Unknown,
}

/// How a type's resources are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// By its own id.
    Patient,
    /// By any of these elements, as R4's compartment has it: (search parameter, element).
    Compartment(&'static [(&'static str, &'static str)]),
    /// A Group: ours is a member, and no other patient is.
    Members,
    /// A Device: ours, somebody else's, or nobody's and then shared.
    Device,
    Shared,
    Binary,
    Refused,
}

impl Class {
    /// The elements that may refer to a patient.
    fn elements(self) -> Vec<&'static str> {
        match self {
            Self::Compartment(elements) => elements.iter().map(|(_, element)| *element).collect(),
            Self::Members => vec!["member.entity"],
            Self::Device => vec!["patient"],
            Self::Patient | Self::Shared | Self::Binary | Self::Refused => Vec::new(),
        }
    }
}

/// The class of a type; what is no R4 type is refused.
pub fn class(resource_type: &str) -> Class {
    if let Some(class) = table::other(resource_type) {
        return class;
    }
    let row = table::PATIENT_COMPARTMENT.iter().find(|(name, _)| *name == resource_type);
    row.map_or(Class::Refused, |(_, elements)| Class::Compartment(elements))
}

/// Whether a resource (in JSON) belongs to the patient with that id. Its type is read from itself. `bases`:
/// those under which absolute references mean the server that the id comes from.
///
/// Contained resources are judged with it: none may be a Patient (nobody could say which), name another
/// patient in an element of the compartment, or be of a type that is refused.
pub fn belongs(resource: &[u8], patient_id: &str, bases: &Bases) -> Belonging {
    judge(resource, patient_id, bases).unwrap_or(Belonging::Unknown)
}

fn judge(resource: &[u8], patient_id: &str, bases: &Bases) -> Result<Belonging, Unreadable> {
    let head = head(resource)?;
    let class = class(&head.resource_type);
    let referred = || referred(resource, &class.elements(), patient_id, bases);
    let own = match class {
        Class::Patient if head.id.as_deref() == Some(patient_id) => Belonging::Yes,
        Class::Patient => Belonging::No,
        Class::Compartment(_) if referred()?.ours => Belonging::Yes,
        Class::Compartment(_) => Belonging::No,
        Class::Members => match referred()? {
            Referred { ours: true, others: false, .. } => Belonging::Yes,
            _ => Belonging::No,
        },
        Class::Device => match referred()? {
            Referred { ours: true, .. } => Belonging::Yes,
            Referred { any: false, .. } => Belonging::Shared,
            _ => Belonging::No,
        },
        Class::Shared => Belonging::Shared,
        Class::Binary => Belonging::Binary,
        Class::Refused => Belonging::Unknown,
    };
    if matches!(own, Belonging::No | Belonging::Unknown) {
        return Ok(own);
    }
    for contained in &head.contained {
        match contained_belongs(contained.get().as_bytes(), patient_id, bases)? {
            Belonging::No => return Ok(Belonging::No),
            Belonging::Unknown => return Ok(Belonging::Unknown),
            _ => {}
        }
    }
    Ok(own)
}

/// A contained resource is part of the one that contains it, unless it says otherwise.
fn contained_belongs(resource: &[u8], patient_id: &str, bases: &Bases) -> Result<Belonging, Unreadable> {
    let head = head(resource)?;
    // R4 forbids contained resources to contain others.
    if !head.contained.is_empty() {
        return Ok(Belonging::Unknown);
    }
    let class = class(&head.resource_type);
    Ok(match class {
        Class::Patient => Belonging::No,
        Class::Refused => Belonging::Unknown,
        Class::Shared | Class::Binary => Belonging::Shared,
        Class::Compartment(_) | Class::Members | Class::Device => {
            let referred = referred(resource, &class.elements(), patient_id, bases)?;
            if referred.others { Belonging::No } else { Belonging::Yes }
        }
    })
}
