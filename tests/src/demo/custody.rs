//! The token that Mantel holds at an EHR, as that EHR sees it. Never the token itself.

use serde::Serialize;

use crate::{
    demo::Site,
    ehr::{
        auth::state::{End, Grant},
        simulator::Simulator,
    },
};

/// Times are milliseconds since 1970, by the EHR's clock.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Custody {
    pub now: i64,
    pub issued: i64,
    pub expires: i64,
    /// From when Mantel renews it.
    pub due: i64,
    pub renewals: u64,
    /// How many refresh tokens there have been before the present one.
    pub generation: u64,
    pub ended: Option<End>,
}

/// The newest grant of a site's registration, for a patient.
pub fn view(ehr: &Simulator, site: &Site, patient: Option<&str>) -> Option<Custody> {
    let now = ehr.now();
    let state = ehr.auth.state();
    let ours = |grant: &&Grant| {
        grant.client_id == site.client_id && (patient.is_none() || grant.patient.as_deref() == patient)
    };
    let grant = state.grants.values().filter(ours).max_by_key(|grant| grant.started)?;
    Some(of_grant(grant, site, now))
}

fn of_grant(grant: &Grant, site: &Site, now: i64) -> Custody {
    let issued = grant.last_refresh.unwrap_or(grant.started);
    let before = i64::try_from(site.refresh_before.as_millis()).unwrap_or(i64::MAX);
    // Mantel clamps it to 40 % of the lifetime.
    let before = before.min((grant.access_until - issued) * 2 / 5);
    Custody {
        now,
        issued,
        expires: grant.access_until,
        due: grant.access_until - before,
        renewals: grant.refreshes,
        generation: grant.generation,
        ended: grant.ended,
    }
}
