//! What a vendor does by default, what `strict` makes of it, and what a switch overrides
//! (`vendors.md` part B).

use crate::ehr::contract::{Behaviour, Rotation, Vendor};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

#[derive(Clone, Debug)]
pub struct Rules {
    pub vendor: Vendor,
    pub strict: bool,
    /// Seconds.
    pub access_lifetime: u64,
    pub rotation: Rotation,
    pub refresh_life: RefreshLife,
    /// Answers say when the refresh token ends.
    pub tells_refresh_end: bool,
    /// Whether a spent refresh token ends its grant.
    pub reuse_ends_grant: bool,
    pub pkce_required: bool,
    /// athenaOne: `openid` needs a nonce.
    pub nonce_required: bool,
    pub wildcards: bool,
    pub v2_scopes: bool,
    pub scope_needed_on_refresh: bool,
    /// Refresh tokens come without `offline_access`, too.
    pub refresh_unasked: bool,
    /// Milliseconds between two refreshes of one grant.
    pub min_refresh_interval: i64,
    pub token_requests_per_minute: Option<u32>,
    /// Epic: longer authorization URLs are 404.
    pub max_authorize_url: usize,
    pub max_scopes: usize,
    pub record_v1: Option<bool>,
    pub odd_scopes: OddScopes,
    pub hide_offline_access: bool,
    pub banner_as_string: bool,
    pub provider_picker: bool,
    pub smart_configuration: bool,
    pub access_form: AccessForm,
    /// Practice, Flow: asking for `fhirUser` breaks the sign-in.
    pub fhir_user_fails: bool,
    /// Milliseconds that a key set of an app is kept.
    pub jwks_cache: i64,
    /// Whether an unknown `kid` makes the EHR fetch the set anew.
    pub jwks_refetch: bool,
}

/// Until when a refresh token may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshLife {
    /// Milliseconds since the first one was issued.
    Total(i64),
    /// Milliseconds since it was last used.
    Idle(i64),
    /// As long as the newest access token.
    WithAccess,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OddScopes {
    Plain,
    /// Order and case changed, one twice, a blank at the end.
    Odd,
    /// And one more than was asked.
    OddAndWider,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessForm {
    Opaque,
    /// A JWT of 2 KB.
    Jwt,
    ByTurns,
}

impl Rules {
    pub fn new(behaviour: &Behaviour, fhir_user_fails: bool) -> Self {
        let (vendor, strict, switches) = (behaviour.vendor, behaviour.strict, &behaviour.switches);
        let epic = vendor == Vendor::Epic;
        let oracle = vendor == Vendor::Oracle;
        let athena = matches!(vendor, Vendor::Athena | Vendor::AthenaPractice);
        let rotation = switches.rotation.unwrap_or(match vendor {
            Vendor::Epic | Vendor::Generic if strict => Rotation::Rolling,
            _ => Rotation::Fixed,
        });
        Self {
            vendor,
            strict,
            access_lifetime: switches.access_lifetime.unwrap_or(match vendor {
                Vendor::Epic if strict => 300,
                Vendor::Oracle => 570,
                _ => 3600,
            }),
            rotation,
            tells_refresh_end: switches.refresh_lifetime.is_some(),
            refresh_life: match vendor {
                _ if switches.refresh_lifetime.is_some() => {
                    let life = switches.refresh_lifetime.map_or(DAY, |seconds| i64::from(seconds) * 1000);
                    if rotation == Rotation::Sliding { RefreshLife::Idle(life) } else { RefreshLife::Total(life) }
                }
                Vendor::AthenaPractice if !strict => RefreshLife::WithAccess,
                Vendor::Athena | Vendor::AthenaPractice if strict => RefreshLife::Total(DAY),
                Vendor::Oracle => RefreshLife::Idle(90 * DAY),
                // At athena (Okta) a rotated token keeps the first one's end.
                _ if rotation == Rotation::Sliding && !athena => RefreshLife::Idle(90 * DAY),
                _ => RefreshLife::Total(90 * DAY),
            },
            reuse_ends_grant: strict,
            pkce_required: strict && (epic || oracle) || vendor == Vendor::Generic,
            nonce_required: vendor == Vendor::Athena,
            wildcards: !strict && !oracle || vendor == Vendor::Generic,
            v2_scopes: match vendor {
                Vendor::Athena => !strict,
                Vendor::AthenaPractice => false,
                _ => true,
            },
            scope_needed_on_refresh: vendor == Vendor::Athena && !strict,
            refresh_unasked: athena && strict,
            min_refresh_interval: switches
                .min_refresh_interval
                .map_or(if oracle { MINUTE } else { 0 }, |seconds| i64::from(seconds) * 1000),
            token_requests_per_minute: switches.token_requests_per_minute.or((vendor == Vendor::Athena).then_some(200)),
            max_authorize_url: if epic { 2000 } else { 16_000 },
            max_scopes: if oracle { 100 } else { usize::MAX },
            record_v1: switches.record_v1,
            odd_scopes: match switches.odd_scopes {
                Some(true) => OddScopes::OddAndWider,
                None if epic => OddScopes::Odd,
                _ => OddScopes::Plain,
            },
            hide_offline_access: switches.hide_offline_access.unwrap_or(false),
            banner_as_string: switches.banner_as_string.unwrap_or(epic),
            provider_picker: switches.provider_picker.unwrap_or(!(epic || oracle)),
            smart_configuration: switches.smart_configuration.unwrap_or(match vendor {
                Vendor::AthenaPractice => false,
                Vendor::Athena => !strict,
                _ => true,
            }),
            access_form: match switches.jwt_tokens {
                Some(true) => AccessForm::Jwt,
                Some(false) => AccessForm::Opaque,
                None => match vendor {
                    Vendor::Epic => AccessForm::ByTurns,
                    Vendor::Oracle | Vendor::Athena => AccessForm::Jwt,
                    _ => AccessForm::Opaque,
                },
            },
            fhir_user_fails,
            jwks_cache: if epic { 29 * HOUR } else { HOUR },
            jwks_refetch: !epic,
        }
    }
}
