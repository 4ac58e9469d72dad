//! What an app is told, and what the judge holds it to (`conformance.md` C4).

use std::collections::{BTreeMap, HashSet};

use super::{By, Refused, Request};
use crate::smart::{
    launch::LaunchContext,
    scope::{
        Asked, Context, LaunchScope, Lenient, Permissions, ResourceScope, Scope, ScopeQuery, ScopeSet, Syntax,
        TypeOrAny,
    },
};

/// What came with an EHR's answer. Words are reported when they are honoured, whatever the EHR's `scope` says of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerFacts {
    /// Custody holds a refresh token of the EHR's.
    pub has_refresh_token: bool,
    /// A patient is in context: from the EHR, or from Mantel's picker.
    pub has_patient: bool,
    pub has_encounter: bool,
    /// The EHR's id_token came and passed.
    pub has_id_token: bool,
    pub has_fhir_user: bool,
    /// What `fhirContext` holds.
    pub contexts: Vec<DeliveredContext>,
}

impl AnswerFacts {
    /// The facts that a normalised launch context tells.
    pub fn from_context(context: &LaunchContext) -> Self {
        Self {
            has_patient: context.patient.is_some(),
            has_encounter: context.encounter.is_some(),
            contexts: context.fhir_context.iter().filter_map(DeliveredContext::of).collect(),
            ..Self::default()
        }
    }
}

/// One entry of `fhirContext`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveredContext {
    pub resource_type: String,
    /// Absent means `launch`.
    pub role: Option<String>,
}

impl DeliveredContext {
    fn of(entry: &serde_json::Value) -> Option<Self> {
        let member = |name: &str| entry.get(name).and_then(serde_json::Value::as_str);
        let referenced = || member("reference")?.rsplit('/').nth(1);
        let resource_type = member("type").or_else(referenced)?.to_owned();
        Some(Self { resource_type, role: member("role").map(str::to_owned) })
    }

    fn answers(&self, resource_type: &str, role: Option<&str>) -> bool {
        let own = self.role.as_deref().unwrap_or("launch");
        let asked = role.unwrap_or("launch");
        let same =
            own == asked || percent_encoding::percent_decode_str(asked).decode_utf8().is_ok_and(|asked| own == asked);
        self.resource_type == resource_type && same
    }
}

/// What is granted to the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The `scope` to tell: in the app's own words where granted whole, each token once. Empty: `access_denied`.
    pub reported: String,
    /// The meaning of `reported`: what the judge uses.
    pub enforced: ScopeSet,
    /// What the EHR's own token can do, in the EHR's contexts. `None` where the EHR did not say or not all could be
    /// read: then nothing can be left to the EHR, and the judge inspects.
    pub upstream: Option<ScopeSet>,
    /// Each asked scope that is not granted, or the missing part.
    pub refused: Vec<Refused>,
    /// `patient/` scopes were granted (or `launch/patient` was asked, standalone) and no patient is in context. Without
    /// one they are not reported; once the user has chosen, [`report`] again.
    pub needs_patient: bool,
}

impl Granted {
    /// Whether an app that asked for data got none: worth a page that says so rather than a token that fails at every
    /// read (Oracle drops scopes without a word).
    pub fn lost_all_data(&self, asked: &Asked) -> bool {
        let asked_data = asked.written().iter().any(|written| matches!(written.scope, Scope::Resource(_)));
        asked_data && !self.enforced.has_resources()
    }
}

/// Translates an EHR's `scope` (`None`: absent, which means as requested, RFC 6749 §5.1) back to the app.
pub fn report(asked: &Asked, request: &Request, answer: Option<&str>, facts: &AnswerFacts) -> Granted {
    let lenient = answer.map(ScopeSet::parse_lenient);
    let granted = lenient.as_ref().map_or(&request.upstream, |lenient| &lenient.set);
    let in_app_contexts = request.picker.then(|| granted.with_patient_level_of(Some(Context::User)));
    let mut effective = request.wanted.intersect_resources(in_app_contexts.as_ref().unwrap_or(granted));
    let launch_patient = !request.ehr_launch && request.wanted.has(&Scope::Launch(LaunchScope::Patient));
    let needs_patient = !facts.has_patient && (launch_patient || effective.has_context(Context::Patient));
    if !facts.has_patient {
        effective = effective.with_patient_level_of(None);
    }

    let mut reporting = Reporting {
        request,
        facts,
        granted,
        order: order(lenient.as_ref()),
        effective,
        told: Vec::new(),
        seen: HashSet::new(),
        enforced: ScopeSet::default(),
        refused: request.refused.clone(),
    };
    reporting.tell(asked);
    reporting.refuse(asked);
    let Reporting { told, enforced, refused, .. } = reporting;

    let known = |lenient: &Lenient| lenient.unreadable.iter().all(|word| request.private.contains(word));
    let upstream = lenient.filter(known).map(|lenient| lenient.set);
    Granted { reported: told.join(" "), enforced, upstream, refused, needs_patient }
}

/// A scope granted in part: one canonical token for each context, type and query (C4.3), in each syntax asked in.
type PartKey = (Syntax, Context, TypeOrAny, Option<ScopeQuery>);

/// Where the EHR first named a type and query.
type Order<'a> = BTreeMap<(&'a TypeOrAny, Option<&'a ScopeQuery>), usize>;

fn order(lenient: Option<&Lenient>) -> Order<'_> {
    let mut order = Order::new();
    for (index, scope) in lenient.into_iter().flat_map(|lenient| &lenient.order).enumerate() {
        order.entry((&scope.resource, scope.query.as_ref())).or_insert(index);
    }
    order
}

struct Reporting<'a> {
    request: &'a Request,
    facts: &'a AnswerFacts,
    /// As the EHR says, for words.
    granted: &'a ScopeSet,
    order: Order<'a>,
    /// What the app may be told of resources, in its contexts.
    effective: ScopeSet,
    told: Vec<String>,
    seen: HashSet<String>,
    enforced: ScopeSet,
    refused: Vec<Refused>,
}

impl Reporting<'_> {
    fn tell(&mut self, asked: &Asked) {
        let whole: ScopeSet = asked
            .written()
            .iter()
            .map(|written| &written.scope)
            .filter(|scope| self.is_whole(scope))
            .cloned()
            .collect();
        let parts = self.parts(asked, &whole);
        for written in asked.written() {
            match (&written.scope, written.dialect) {
                (Scope::Resource(scope), Some(syntax)) if !self.is_whole(&written.scope) => {
                    let keys = self.effective.within(scope);
                    let mut keys: Vec<PartKey> =
                        keys.into_iter().map(|part| (syntax, part.context, part.resource, part.query)).collect();
                    keys.sort_by_cached_key(|key| (self.rank(key), key.clone()));
                    keys.iter().filter_map(|key| parts.get(key)).for_each(|(text, part)| {
                        self.push(text, Scope::Resource(part.clone()));
                    });
                }
                (Scope::Resource(_), _) => self.push(&written.text, written.scope.clone()),
                (word, _) if self.is_honoured(word) => self.push(&written.text, word.clone()),
                _ => {}
            }
        }
    }

    /// Parts of one asked scope are told in the EHR's order.
    fn rank(&self, (_, _, resource, query): &PartKey) -> usize {
        self.order.get(&(resource, query.as_ref())).copied().unwrap_or(usize::MAX)
    }

    fn push(&mut self, text: &str, scope: Scope) {
        if self.seen.insert(text.to_owned()) {
            self.told.push(text.to_owned());
            self.enforced.insert(scope);
        }
    }

    /// Granted all that it says, and so echoed byte for byte.
    fn is_whole(&self, scope: &Scope) -> bool {
        matches!(scope, Scope::Resource(_)) && self.effective.covers_scope(scope)
    }

    /// What is granted of the scopes that are not granted whole, as far as their syntax can say it (C4.5) and nothing
    /// else that is told says it.
    fn parts(&self, asked: &Asked, whole: &ScopeSet) -> BTreeMap<PartKey, (String, ResourceScope)> {
        let mut found = BTreeMap::<PartKey, Permissions>::new();
        for written in asked.written() {
            let (Scope::Resource(scope), Some(syntax)) = (&written.scope, written.dialect) else { continue };
            if self.is_whole(&written.scope) {
                continue;
            }
            for part in self.effective.within(scope) {
                let all = self.effective.effective(part.context, &part.resource, part.query.as_ref());
                let known = found.entry((syntax, part.context, part.resource, part.query)).or_default();
                *known = *known | all.intersect(scope.permissions);
            }
        }
        let sayable = found.into_iter().filter_map(|(key, permissions)| {
            let (syntax, context, resource, query) = key.clone();
            let permissions = if syntax == Syntax::V1 { permissions.v1_floor() } else { permissions };
            let scope = ResourceScope { context, resource, permissions, query };
            let text = (!permissions.is_empty()).then(|| scope.to_token(syntax)).flatten()?;
            Some((key, (text, scope)))
        });
        let sayable: BTreeMap<_, _> = sayable.collect();
        let parts: ScopeSet = sayable.values().map(|(_, scope)| Scope::Resource(scope.clone())).collect();
        let in_v1: ScopeSet = sayable
            .iter()
            .filter(|((syntax, ..), _)| *syntax == Syntax::V1)
            .map(|(_, (_, scope))| Scope::Resource(scope.clone()))
            .collect();
        let said = |syntax: Syntax, scope: &ResourceScope| {
            let this = Scope::Resource(scope.clone());
            whole.covers_scope(&this) || parts.is_redundant(scope) || syntax == Syntax::V2 && in_v1.covers_scope(&this)
        };
        sayable
            .iter()
            .filter(|((syntax, ..), (_, scope))| !said(*syntax, scope))
            .map(|(key, part)| (key.clone(), part.clone()))
            .collect()
    }

    fn is_honoured(&self, word: &Scope) -> bool {
        let facts = self.facts;
        self.request.wanted.has(word)
            && match word {
                Scope::Launch(LaunchScope::Ehr) => self.request.ehr_launch,
                Scope::Launch(LaunchScope::Patient) => facts.has_patient,
                Scope::Launch(LaunchScope::Encounter) => facts.has_encounter,
                Scope::Launch(LaunchScope::Other { resource_type, role }) => {
                    facts.contexts.iter().any(|context| context.answers(resource_type, role.as_deref()))
                }
                Scope::OpenId | Scope::Profile => facts.has_id_token,
                Scope::FhirUser => facts.has_fhir_user,
                Scope::OfflineAccess => facts.has_refresh_token,
                // It ends with the session, which a grant that outlives the login does not.
                Scope::OnlineAccess => facts.has_refresh_token && !self.request.wanted.has(&Scope::OfflineAccess),
                Scope::Extension(_) => self.granted.has(word),
                Scope::Resource(_) => false,
            }
    }

    fn refuse(&mut self, asked: &Asked) {
        let wanted = &self.request.wanted;
        for written in asked.written() {
            match &written.scope {
                Scope::Resource(scope) => {
                    let missing = wanted.touched(scope).without(self.enforced.touched(scope));
                    if !missing.is_empty() {
                        let cancelled =
                            scope.context == Context::Patient && !self.facts.has_patient && self.request.picker;
                        let by = if cancelled { By::User } else { By::Ehr };
                        self.refused.push(Refused::part(&written.text, written.dialect, scope, missing, by));
                    }
                }
                word if wanted.has(word) && !self.enforced.has(word) => {
                    self.refused.push(Refused::new(written.text.as_str(), self.who_refused(word)));
                }
                _ => {}
            }
        }
    }

    fn who_refused(&self, word: &Scope) -> By {
        let request = self.request;
        match word {
            Scope::Launch(LaunchScope::Patient) if request.picker => By::User,
            Scope::OnlineAccess if self.facts.has_refresh_token => By::Vendor,
            Scope::OfflineAccess | Scope::OnlineAccess => {
                let sent = request.upstream.has(&Scope::OfflineAccess) || request.upstream.has(&Scope::OnlineAccess);
                if sent { By::Ehr } else { By::Registration }
            }
            word if request.upstream.has(word) => By::Ehr,
            _ => By::Registration,
        }
    }
}
