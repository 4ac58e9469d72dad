//! Reads of a resource only what is asked: its head, and references at given elements.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::fhir::{interaction::is_id, rewrite::Bases, types::is_resource_type};

/// A resource that is no JSON object with one `resourceType`, or that says something twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is no FHIR resource: expected a JSON object with a resourceType and no member twice")]
pub struct Unreadable;

/// What a resource says of itself.
#[derive(Debug, Deserialize)]
pub struct Head<'a> {
    #[serde(rename = "resourceType")]
    pub resource_type: String,
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default, borrow)]
    pub contained: Vec<&'a RawValue>,
    #[serde(default)]
    meta: Option<Meta>,
}

#[derive(Debug, Deserialize)]
struct Meta {
    #[serde(default, rename = "versionId")]
    version_id: Option<String>,
}

impl Head<'_> {
    /// `meta.versionId`.
    pub fn version(&self) -> Option<&str> {
        self.meta.as_ref()?.version_id.as_deref()
    }
}

/// Reads a resource's head.
pub fn head(resource: &[u8]) -> Result<Head<'_>, Unreadable> {
    if !is_object(resource) {
        return Err(Unreadable);
    }
    serde_json::from_slice(resource).map_err(|_| Unreadable)
}

/// Whether a JSON text is an object: where a struct is read, serde takes a list for its members in their order.
pub(in crate::fhir) fn is_object(text: &[u8]) -> bool {
    text.trim_ascii_start().starts_with(b"{")
}

/// A reference to a resource of the same server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalReference<'a> {
    pub resource_type: &'a str,
    pub id: &'a str,
}

/// Reads a literal reference: relative (`Patient/1`), absolute below one of the bases, with or without a
/// version or fragment. `None`: a contained, logical, foreign or malformed one.
pub fn local_reference<'a>(text: &'a str, bases: &Bases) -> Option<LocalReference<'a>> {
    let path = match bases.below(text) {
        Some(rest) => rest.strip_prefix('/')?,
        None => text,
    };
    let path = path.split('#').next().unwrap_or_default();
    let mut segments = path.split('/');
    let (resource_type, id) = (segments.next()?, segments.next()?);
    let rest = (segments.next(), segments.next(), segments.next());
    let fits = matches!(rest, (None, ..)) || matches!(rest, (Some("_history"), Some(version), None) if is_id(version));
    (fits && is_resource_type(resource_type) && is_id(id)).then_some(LocalReference { resource_type, id })
}

/// To whom the elements of a resource refer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Referred {
    pub(super) ours: bool,
    /// To a patient that is not ours, here or elsewhere.
    pub(super) others: bool,
    /// To anybody or anything at all, logical references counted.
    pub(super) any: bool,
}

pub(super) fn referred(
    resource: &[u8],
    elements: &[&str],
    patient_id: &str,
    bases: &Bases,
) -> Result<Referred, Unreadable> {
    let mut referred = Referred::default();
    let mut note = |reference: Option<&str>| {
        referred.any = true;
        let Some(text) = reference else { return };
        match local_reference(text, bases) {
            Some(LocalReference { resource_type: "Patient", id }) if id == patient_id => referred.ours = true,
            Some(LocalReference { resource_type: "Patient", .. }) => referred.others = true,
            Some(_) => {}
            // Elsewhere, or something that another parser may still read as a patient.
            None => referred.others |= text.contains("Patient/"),
        }
    };
    walk(resource, elements, &mut note)?;
    Ok(referred)
}

/// What a Provenance is about, as `Type/id`. `None`: it is unreadable, or some target is not of this server.
///
/// R4's compartment has only those Provenances that name the Patient itself; one whose targets all were
/// shown to the grant is as good (`_revinclude=Provenance:target`).
pub fn provenance_targets(resource: &[u8], bases: &Bases) -> Option<Vec<String>> {
    let mut targets = Vec::new();
    let mut complete = head(resource).ok()?.resource_type == "Provenance";
    let mut note = |reference: Option<&str>| match reference.and_then(|text| local_reference(text, bases)) {
        Some(LocalReference { resource_type, id }) => targets.push(format!("{resource_type}/{id}")),
        None => complete = false,
    };
    walk(resource, &["target"], &mut note).ok()?;
    (complete && !targets.is_empty()).then_some(targets)
}

/// Calls `note` for each Reference at one of the elements (`participant.actor`), lists entered, with its
/// literal reference if it has one.
fn walk(resource: &[u8], elements: &[&str], note: &mut dyn FnMut(Option<&str>)) -> Result<(), Unreadable> {
    let mut reader = serde_json::Deserializer::from_slice(resource);
    Walk { elements, note }.deserialize(&mut reader).and_then(|()| reader.end()).map_err(|_| Unreadable)
}

/// Walks to elements. An empty path means: the References are here.
struct Walk<'p, 'n> {
    elements: &'p [&'p str],
    note: &'n mut dyn FnMut(Option<&str>),
}

/// What is left of each element's path below the member of that name.
fn below<'p>(elements: &[&'p str], member: &str) -> Vec<&'p str> {
    let rest = |element: &&'p str| {
        let rest = element.strip_prefix(member)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
    };
    elements.iter().filter_map(rest).collect()
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an element of a FHIR resource")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let is_reference = self.elements.contains(&"");
        let mut seen: Vec<Cow<'de, str>> = Vec::new();
        let mut literal: Option<Option<String>> = None;
        while let Some(Name(name)) = members.next_key()? {
            let below = below(self.elements, &name);
            let is_literal = is_reference && name == "reference";
            if below.is_empty() && !is_literal {
                members.next_value::<IgnoredAny>()?;
                continue;
            }
            if seen.contains(&name) {
                return Err(serde::de::Error::custom("a member stands twice"));
            }
            if is_literal {
                literal = Some(members.next_value()?);
            } else {
                members.next_value_seed(Walk { elements: &below, note: self.note })?;
            }
            seen.push(name);
        }
        if is_reference {
            (self.note)(literal.flatten().as_deref());
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Walk { elements: self.elements, note: self.note })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A member's name, borrowed where it has no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member's name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Text)
    }
}
