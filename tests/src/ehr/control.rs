//! `/_control/…`: what tests ask of the EHR itself. No part of what is simulated, neither counted nor faulty.
//! In a test's own process the same is done by methods of [`Simulator`] and its parts.
//!
//! | call | body, answer |
//! |---|---|
//! | `GET counts` | how often each call was made, by name: `{"token:refresh_token": 3}` |
//! | `GET grants` | [`GrantView`]s: generations, uses of refresh tokens, reuse detected, ends; no tokens |
//! | `GET refusals` | what was refused, and why; the EHR itself says less |
//! | `GET faults`, `POST faults`, `DELETE faults` | the script; a [`Fault`] or a list; forget it |
//! | `POST release` | lets go of the calls that `hold` holds |
//! | `POST reset` | counts, faults, refusals, lifetime; apps, grants and clock stay |
//! | `POST expire` | every access token ends now |
//! | `POST lifetime` | `{"seconds": 300}` for access tokens from now on; `{}`: the vendor's own |
//! | `POST advance` | `{"seconds": 3600}`: the EHR's clock goes forward |
//! | `POST clients` | a [`Client`] or a list |
//! | `POST launch` | a [`LaunchOrder`]; answers `iss`, `launch`, `url` |
//! | `POST end`, `POST suspend` | `{"grant": 1}`, or `{}` for all |
//! | `POST sign-out` | `{"username": "…"}`, or `{}` for all: sessions end, and `online_access` with them |
//! | `POST forget-keys` | apps' key sets are fetched anew |

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::ehr::{
    auth::{
        client::Client,
        state::{End, GrantView},
    },
    faults::Fault,
    simulator::{LaunchOrder, Simulator},
    web::{Call, Reply, empty, json as json_reply},
};

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn all(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lifetime {
    /// None: the vendor's own.
    seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    seconds: i64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Selection {
    /// None: all.
    grant: Option<u64>,
    username: Option<String>,
}

impl Simulator {
    pub fn control(&self, call: &Call, what: &str) -> Reply {
        match self.controlled(call, what) {
            Ok(Some(answer)) => json_reply(StatusCode::OK, &answer),
            Ok(None) => empty(StatusCode::NOT_FOUND),
            Err(fault) => json_reply(StatusCode::BAD_REQUEST, &json!({"error": format!("{fault:#}")})),
        }
    }

    fn controlled(&self, call: &Call, what: &str) -> Result<Option<Value>> {
        let get = call.method == Method::GET;
        let post = call.method == Method::POST;
        let done = Ok(Some(json!({"done": true})));
        match what {
            "counts" if get => Ok(Some(json!(self.counters.all()))),
            "grants" if get => Ok(Some(json!(self.grants()))),
            "refusals" if get => Ok(Some(json!(self.auth.refused()))),
            "faults" if get => Ok(Some(json!(self.faults.left()))),
            "faults" if post => {
                for fault in read::<OneOrMany<Fault>>(call)?.all() {
                    self.faults.add(fault);
                }
                done
            }
            "faults" if call.method == Method::DELETE => {
                self.faults.clear();
                done
            }
            "release" if post => {
                self.faults.release();
                done
            }
            "reset" if post => {
                self.reset();
                done
            }
            "expire" if post => Ok(Some(json!({"expired": self.expire_access_tokens()}))),
            "clients" if post => {
                for client in read::<OneOrMany<Client>>(call)?.all() {
                    self.auth.register(client)?;
                }
                done
            }
            "launch" if post => Ok(Some(json!(self.launch(&read::<LaunchOrder>(call)?)?))),
            "lifetime" if post => {
                self.auth.set_lifetime(read::<Lifetime>(call)?.seconds);
                done
            }
            "advance" if post => {
                self.advance(read::<Advance>(call)?.seconds.saturating_mul(1000));
                done
            }
            "end" if post => Ok(Some(json!({"ended": self.end_grants(read::<Selection>(call)?.grant)}))),
            "suspend" if post => Ok(Some(json!({"suspended": self.suspend_grants(read::<Selection>(call)?.grant)}))),
            "sign-out" if post => {
                let who = read::<Selection>(call)?.username;
                Ok(Some(json!({"ended": self.auth.end_sessions(who.as_deref())})))
            }
            "forget-keys" if post => {
                self.auth.forget_key_sets();
                done
            }
            _ => Ok(None),
        }
    }

    /// Counters, faults, refusals and the lifetime back to the start; apps, grants and the clock stay.
    pub fn reset(&self) {
        self.counters.reset();
        self.faults.clear();
        self.auth.forget_refused();
        self.auth.set_lifetime(None);
    }

    pub fn grants(&self) -> Vec<GrantView> {
        self.auth.state().view(self.now())
    }

    /// Ends every access token now; returns how many lived. Refresh tokens stay, unless they die with them.
    pub fn expire_access_tokens(&self) -> usize {
        let now = self.now();
        let mut state = self.auth.state();
        let mut expired = 0;
        for token in state.access.values_mut().filter(|token| token.until > now) {
            token.until = now;
            expired += 1;
        }
        for grant in state.grants.values_mut() {
            grant.access_until = grant.access_until.min(now);
        }
        expired
    }

    /// Kills a grant, or all: its tokens are dead from now on.
    pub fn end_grants(&self, id: Option<u64>) -> usize {
        let mut state = self.auth.state();
        let chosen: Vec<u64> = state
            .grants
            .iter()
            .filter(|(known, grant)| grant.ended.is_none() && id.is_none_or(|id| id == **known))
            .map(|(known, _)| *known)
            .collect();
        for id in &chosen {
            state.end(*id, End::Killed);
        }
        chosen.len()
    }

    /// Oracle: refuses a grant, or all, until somebody visits the `error_uri`.
    pub fn suspend_grants(&self, id: Option<u64>) -> usize {
        let mut state = self.auth.state();
        let mut suspended = 0;
        for (known, grant) in &mut state.grants {
            if grant.ended.is_none() && id.is_none_or(|id| id == *known) {
                grant.suspended = true;
                suspended += 1;
            }
        }
        suspended
    }
}

/// An empty body reads as `{}`.
fn read<T: DeserializeOwned>(call: &Call) -> Result<T> {
    let body: &[u8] = if call.body.is_empty() { b"{}" } else { &call.body };
    serde_json::from_slice(body).context("the body is not what this control call takes")
}
