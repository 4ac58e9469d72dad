//! `Patient/{id}/$everything`, where it exists (`vendors.md` part A).

use super::{
    Asked, House, State,
    access::Need,
    catalog, compartment,
    fault::Fault,
    paging::{self, View},
    params::{self, Kind},
    read,
    reply::Reply,
    search::{Hit, Matcher, Question},
};
use crate::ehr::contract::Vendor;

pub const fn served(vendor: Vendor) -> bool {
    matches!(vendor, Vendor::AthenaPractice | Vendor::Generic)
}

/// All that the token opens of one patient's compartment, and whom it names.
pub fn everything(house: &House, state: &mut State, asked: &Asked, patient: &str) -> Result<Reply, Fault> {
    let rule = catalog::rule(house.vendor, "Patient").ok_or(Fault::UnknownPath)?;
    let permit = asked.access.permit("Patient", Need::Read).ok_or_else(|| Fault::NoScope("Patient".to_owned()))?;
    read::seen(house, state, &permit, rule, patient)?;
    let mut hits: Vec<Hit> = Vec::new();
    let own = catalog::rules(house.vendor).iter().filter(|rule| !compartment::is_shared(rule.name));
    for rule in own {
        let (Some(read), true) = (
            asked.access.permit(rule.name, Need::Read),
            asked.access.permit(rule.name, Need::Search).is_some() || rule.name == "Patient",
        ) else {
            continue;
        };
        let owned = state.store.all(rule.name).filter(|(_, _, resource)| {
            state.store.owners(resource).iter().any(|owner| owner == patient)
                && read.admits(&state.store, &house.base, resource)
        });
        hits.extend(owned.map(|(id, _, resource)| Hit::include(rule.name, id, resource)));
    }
    let matcher = Matcher { store: &state.store, base: &house.base };
    let mut named: Vec<(String, String)> = Vec::new();
    for hit in &hits {
        for param in params::of(&hit.ty).filter(|param| param.kind == Kind::Reference) {
            for (ty, id) in matcher.targets(&hit.resource, param.paths).filter(|(ty, _)| compartment::is_shared(ty)) {
                let target = (ty.to_owned(), id.to_owned());
                if !named.contains(&target) {
                    named.push(target);
                }
            }
        }
    }
    for (ty, id) in named {
        let open = asked.access.permit(&ty, Need::Read);
        if let (Some(permit), Some(resource)) = (open, state.store.live(&ty, &id))
            && permit.admits(&state.store, &house.base, resource)
        {
            hits.push(Hit::include(&ty, &id, resource));
        }
    }
    let question = Question {
        ty: "Patient".to_owned(),
        path: format!("Patient/{patient}/$everything"),
        count: asked.pairs.iter().find(|(name, _)| name == "_count").and_then(|(_, value)| value.parse().ok()),
        ..Question::default()
    };
    let view = View::new(house, asked, question, hits)?;
    Ok(paging::page(house, state, asked, view))
}
