//! What is asked of an EHR.

use serde::{Deserialize, Serialize};

use super::{Allowed, By, Refused, Ticked};
use crate::{
    profile::{Dialect, RefreshScope, ScopePolicy, Wildcards},
    smart::scope::{Asked, Context, LaunchScope, Permissions, ResourceScope, Scope, ScopeQuery, ScopeSet, TypeOrAny},
};

/// The kind of grant that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrantKind {
    /// A user authorises: no `system/`.
    #[default]
    AuthorizationCode,
    /// Backend Services: `system/` and extensions only; `patient/` and `user/` need an arrangement that Mantel does not
    /// make.
    ClientCredentials,
}

/// What besides the scopes shapes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskOptions {
    pub grant: GrantKind,
    pub refresh_scope: RefreshScope,
    /// Whether custody wants a refresh token though the app asked for none (`custody = "session"`).
    pub wants_refresh_for_custody: bool,
    /// Whether the EHR launched, and `launch` is sent.
    pub ehr_launch: bool,
    /// Whether the EHR names no patient in a standalone launch: `patient/X` is asked as `user/X`, and `user/Patient.rs`
    /// with it for Mantel's own picker.
    pub picker: bool,
}

impl Default for AskOptions {
    fn default() -> Self {
        Self {
            grant: GrantKind::AuthorizationCode,
            refresh_scope: RefreshScope::OfflineAccess,
            wants_refresh_for_custody: false,
            ehr_launch: false,
            picker: false,
        }
    }
}

/// A request for scopes, as it goes to the EHR, and what must be remembered until the answer comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The `scope` to send: in the vendor's dialect, each scope once, in a fixed order, as few as possible.
    pub text: String,
    /// What it means, contexts as the EHR is asked.
    pub upstream: ScopeSet,
    /// What cannot be asked.
    pub refused: Vec<Refused>,
    /// What may be granted to the app: asked ∩ allowed ∩ askable, contexts as the app asked.
    pub(super) wanted: ScopeSet,
    /// Sent words that are no scopes of SMART's.
    pub(super) private: Vec<String>,
    pub(super) ehr_launch: bool,
    pub(super) picker: bool,
}

impl Request {
    /// Whether nothing is left to ask: `invalid_scope`.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty() || self.text.is_empty()
    }

    /// Whether `patient/` is asked upstream as `user/`, and Mantel must let the user choose the patient.
    pub fn picker(&self) -> bool {
        self.picker
    }
}

/// Translates what an app asks into what an EHR is asked: never more than is ticked, never for more than was asked save
/// for what the dialect cannot say.
pub fn ask(asked: &Asked, allowed: &Allowed, ticked: &Ticked, policy: &ScopePolicy, options: AskOptions) -> Request {
    let mut asking = Asking::new(asked, allowed, ticked, policy, options);
    asking.words();
    asking.refresh();
    asking.resources();
    asking.launch();
    asking.finish()
}

/// Whether a query can be put to the vendor in a scope.
pub(super) fn takes(policy: &ScopePolicy, query: &ScopeQuery) -> bool {
    policy.queries && policy.dialect == Dialect::V2 && query.is_category_only()
}

struct Asking<'a> {
    asked: &'a Asked,
    allowed: &'a Allowed,
    ticked: &'a Ticked,
    policy: &'a ScopePolicy,
    options: AskOptions,
    /// `None`: the EHR names the patient. `Some(false)`: Mantel should ask, but the registration lacks the reads for it.
    picker: Option<bool>,
    upstream: ScopeSet,
    wanted: ScopeSet,
    refused: Vec<Refused>,
}

impl<'a> Asking<'a> {
    fn new(
        asked: &'a Asked,
        allowed: &'a Allowed,
        ticked: &'a Ticked,
        policy: &'a ScopePolicy,
        options: AskOptions,
    ) -> Self {
        let about_a_patient = |scope: &Scope| match scope {
            Scope::Resource(scope) => scope.context == Context::Patient,
            other => *other == Scope::Launch(LaunchScope::Patient),
        };
        let picker = options.picker
            && !options.ehr_launch
            && options.grant == GrantKind::AuthorizationCode
            && asked.written().iter().any(|written| about_a_patient(&written.scope));
        let picker = picker.then(|| ticked.set.covers_scope(&Scope::Resource(picker_reads())));
        Self {
            asked,
            allowed,
            ticked,
            policy,
            options,
            picker,
            upstream: ScopeSet::default(),
            wanted: ScopeSet::default(),
            refused: Vec::new(),
        }
    }

    fn refuse(&mut self, scope: &str, by: By) {
        self.refused.push(Refused::new(scope, by));
    }

    fn words(&mut self) {
        let asked = self.asked;
        for written in asked.written() {
            let word = &written.scope;
            if matches!(word, Scope::Resource(_)) {
                continue;
            }
            let backend = self.options.grant == GrantKind::ClientCredentials;
            let in_place = !backend || matches!(word, Scope::Extension(_));
            if !in_place || !self.allowed.0.has(word) {
                self.refuse(&written.text, By::Registration);
                continue;
            }
            let ticked = self.ticked.set.has(word);
            let (want, send, by) = match word {
                Scope::Launch(LaunchScope::Ehr) if !self.options.ehr_launch => (false, false, By::Ehr),
                Scope::Launch(LaunchScope::Patient) if self.picker.is_some() => {
                    (self.picker == Some(true), false, By::Registration)
                }
                // The context may come all the same: with the EHR's launch, or from the user.
                Scope::Launch(launch) if *launch != LaunchScope::Ehr => (true, ticked, By::Registration),
                // What is sent for them is the profile's choice; what is reported rests on what comes.
                Scope::OfflineAccess | Scope::OnlineAccess => (true, false, By::Registration),
                _ => (ticked, ticked, By::Registration),
            };
            if want {
                self.wanted.insert(word.clone());
            } else {
                self.refuse(&written.text, by);
            }
            if send {
                self.upstream.insert(word.clone());
            }
        }
    }

    /// Sends the scope that asks for a refresh token: the one the app asked for, if it is ticked, else the profile's.
    fn refresh(&mut self) {
        let own = match self.options.refresh_scope {
            RefreshScope::OfflineAccess => Scope::OfflineAccess,
            RefreshScope::OnlineAccess => Scope::OnlineAccess,
            RefreshScope::None => return,
        };
        if self.options.grant == GrantKind::ClientCredentials {
            return;
        }
        let wishes = [Scope::OfflineAccess, Scope::OnlineAccess].into_iter().filter(|word| self.wanted.has(word));
        let wishes: Vec<_> = wishes.collect();
        if wishes.is_empty() && !self.options.wants_refresh_for_custody {
            return;
        }
        if let Some(word) = wishes.into_iter().chain([own]).find(|word| self.ticked.set.has(word)) {
            self.upstream.insert(word);
        }
    }

    fn resources(&mut self) {
        let in_place: ScopeSet = self
            .asked
            .written()
            .iter()
            .map(|written| &written.scope)
            .filter(|scope| {
                let backend = self.options.grant == GrantKind::ClientCredentials;
                matches!(scope, Scope::Resource(scope) if (scope.context == Context::System) == backend)
            })
            .cloned()
            .collect();
        // What is ticked, seen through the contexts that the app asks in.
        let ticked = match self.picker {
            None => self.ticked.set.clone(),
            Some(true) => self.ticked.set.with_patient_level_of(Some(Context::User)),
            Some(false) => self.ticked.set.with_patient_level_of(None),
        };
        let ticked_of_wanted = in_place.intersect_resources(&self.allowed.0).intersect_resources(&ticked);
        for scope in ticked_of_wanted.resources() {
            let open = ticked.effective(scope.context, &scope.resource, None);
            if let Some((askable, put)) = askable(&scope, open, self.policy) {
                self.wanted.insert_resource(askable);
                let context =
                    if self.picker.is_some() && put.context == Context::Patient { Context::User } else { put.context };
                self.upstream.insert_resource(ResourceScope { context, ..put });
            }
        }
        let asked = self.asked;
        for written in asked.written() {
            let Scope::Resource(scope) = &written.scope else { continue };
            let ticked = ticked_of_wanted.touched(scope);
            let askable = self.wanted.touched(scope);
            for (missing, by) in
                [(scope.permissions.without(ticked), By::Registration), (ticked.without(askable), By::Vendor)]
            {
                if !missing.is_empty() {
                    self.refused.push(Refused::part(&written.text, written.dialect, scope, missing, by));
                }
            }
        }
    }

    /// What the app need not have asked for: `launch` in an EHR's launch (B3), and `launch/patient` where `patient/`
    /// scopes are asked for without it (SMART lets a server infer it).
    fn launch(&mut self) {
        let inferred = match (self.options.ehr_launch, self.picker) {
            _ if self.options.grant == GrantKind::ClientCredentials => None,
            (true, _) => Some(LaunchScope::Ehr),
            (false, None) if self.wanted.has_context(Context::Patient) => Some(LaunchScope::Patient),
            (false, _) => None,
        };
        self.upstream.extend(inferred.map(Scope::Launch).filter(|word| self.ticked.set.has(word)));
        let asks_a_patient =
            self.wanted.has_context(Context::Patient) || self.wanted.has(&Scope::Launch(LaunchScope::Patient));
        match self.picker {
            Some(true) if asks_a_patient => self.upstream.insert_resource(picker_reads()),
            Some(_) => self.picker = None,
            None => {}
        }
    }

    fn finish(self) -> Request {
        Request {
            text: self.text(),
            upstream: self.upstream,
            refused: self.refused,
            wanted: self.wanted,
            private: self.ticked.private.clone(),
            ehr_launch: self.options.ehr_launch,
            picker: self.picker.is_some(),
        }
    }

    fn text(&self) -> String {
        let minimal = self.upstream.minimal();
        let mut tokens: Vec<_> = minimal.words().map(ToString::to_string).collect();
        for scope in minimal.resources() {
            write(&scope, self.policy, &mut tokens);
        }
        tokens.extend(self.ticked.private.iter().cloned());
        tokens.join(" ")
    }
}

/// What Mantel's own picker needs: search by name, and read.
fn picker_reads() -> ResourceScope {
    ResourceScope {
        context: Context::User,
        resource: TypeOrAny::Type("Patient".into()),
        permissions: Permissions::V1_READ,
        query: None,
    }
}

/// What of a scope can be asked of this vendor, and the scope to put: the smallest around it that the dialect can say,
/// and within what is ticked. `open` is ticked for the type without a query.
fn askable(scope: &ResourceScope, open: Permissions, policy: &ScopePolicy) -> Option<(ResourceScope, ResourceScope)> {
    if scope.resource == TypeOrAny::Any && policy.wildcards == Wildcards::Expand {
        return None;
    }
    let whole = scope.query.as_ref().is_none_or(|query| takes(policy, query));
    let known = if whole { scope.permissions } else { scope.permissions.intersect(open) };
    let put = match policy.dialect {
        Dialect::V2 => known,
        Dialect::V1 | Dialect::V1Lowercase => known.v1_ceiling().intersect(open.v1_floor()),
    };
    let known = known.intersect(put);
    let query = scope.query.clone().filter(|_| whole);
    (!known.is_empty()).then(|| (scope.with(known), ResourceScope { query, ..scope.with(put) }))
}

/// A scope in the vendor's dialect; two tokens where v1 has one only with a `*` and the vendor knows none (Oracle).
fn write(scope: &ResourceScope, policy: &ScopePolicy, tokens: &mut Vec<String>) {
    let name = match policy.dialect {
        Dialect::V2 => return tokens.push(scope.to_string()),
        Dialect::V1 => scope.resource.as_str().to_owned(),
        Dialect::V1Lowercase => scope.resource.as_str().to_ascii_lowercase(),
    };
    let words: &[Permissions] = match scope.permissions {
        Permissions::ALL if policy.wildcards == Wildcards::Expand => &[Permissions::V1_READ, Permissions::V1_WRITE],
        ref other => std::slice::from_ref(other),
    };
    let words = words.iter().filter_map(|word| word.v1_word());
    tokens.extend(words.map(|word| format!("{}/{name}.{word}", scope.context)));
}
