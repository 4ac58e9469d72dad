//! Which road a request takes. Paths are matched raw: what the FHIR road decodes, it decodes itself.

use std::str::FromStr as _;

use mantel_adapters::site::SiteId;

use crate::config::Base;

/// A road, with what is left of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Road<'a> {
    /// Below a FHIR base; `tail` begins with `/` or is empty.
    Fhir { base: Base, tail: &'a str },
    /// `{base}/.well-known/smart-configuration`
    SmartConfiguration(Base),
    /// Authorization server, pages, keys.
    Control,
}

const UNIFORM: &str = "/fhir/r4";
const WELL_KNOWN: &str = "/.well-known/smart-configuration";

pub fn road(path: &str) -> Road<'_> {
    let (base, tail) = if let Some(tail) = below(path, UNIFORM) {
        (Base::Uniform, tail)
    } else if let Some((site, tail)) = path
        .strip_prefix("/sites/")
        .and_then(|rest| rest.split_once('/'))
        .and_then(|(site, _)| Some((SiteId::from_str(site).ok()?, below(path.get(7 + site.len()..)?, UNIFORM)?)))
    {
        (Base::Site(site), tail)
    } else {
        return Road::Control;
    };
    if tail == WELL_KNOWN { Road::SmartConfiguration(base) } else { Road::Fhir { base, tail } }
}

/// What follows `prefix`, if it ends there at a segment's border.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|tail| tail.is_empty() || tail.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roads() {
        let site = Base::Site("general".parse().unwrap());
        for (path, expected) in [
            ("/fhir/r4", Road::Fhir { base: Base::Uniform, tail: "" }),
            ("/fhir/r4/", Road::Fhir { base: Base::Uniform, tail: "/" }),
            ("/fhir/r4/Patient/1", Road::Fhir { base: Base::Uniform, tail: "/Patient/1" }),
            ("/fhir/r4b", Road::Control),
            ("/sites/general/fhir/r4/Patient", Road::Fhir { base: site.clone(), tail: "/Patient" }),
            ("/sites/general/fhir/r4", Road::Fhir { base: site.clone(), tail: "" }),
            ("/sites/general/fhir/r4/.well-known/smart-configuration", Road::SmartConfiguration(site)),
            ("/fhir/r4/.well-known/smart-configuration", Road::SmartConfiguration(Base::Uniform)),
            ("/sites/general/oauth/token", Road::Control),
            ("/sites/GENERAL/fhir/r4/Patient", Road::Control),
            ("/sites//fhir/r4", Road::Control),
            ("/oauth/token", Road::Control),
            ("//fhir/r4", Road::Control),
        ] {
            assert_eq!(road(path), expected, "{path}");
        }
    }
}
