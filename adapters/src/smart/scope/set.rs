//! A set of scopes, by meaning.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Context, Lenient, Malformed, Permissions, ResourceScope, Scope, ScopeQuery, TypeOrAny, lenient};

/// Whether a set of scopes permits something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    No,
    Yes,
    /// Only for resources that match at least one of these.
    Constrained(Vec<ScopeQuery>),
}

/// Scopes in normal form: tokens that differ only in permissions are united. A wildcard beside one of its types stays
/// beside it, since apps are told both.
///
/// Displayed and serialised as a scope string in v2; parsing that gives the same set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeSet {
    patient: Level,
    user: Level,
    system: Level,
    /// All that are not resource scopes.
    words: BTreeSet<Scope>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Level {
    any: Rules,
    types: BTreeMap<String, Rules>,
}

/// No entry is empty: equality depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rules {
    open: Permissions,
    constrained: BTreeMap<ScopeQuery, Permissions>,
}

impl Rules {
    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.constrained.is_empty()
    }

    fn get(&self, query: Option<&ScopeQuery>) -> Permissions {
        match query {
            None => self.open,
            Some(query) => self.open | self.constrained.get(query).copied().unwrap_or_default(),
        }
    }

    /// Each query with its permissions, `None` for the unconstrained ones.
    fn iter(&self) -> impl Iterator<Item = (Option<&ScopeQuery>, Permissions)> {
        let open = (!self.open.is_empty()).then_some((None, self.open));
        open.into_iter().chain(self.constrained.iter().map(|(query, permissions)| (Some(query), *permissions)))
    }
}

impl ScopeSet {
    /// Parses a scope string exactly; for what the gateway wrote itself and what an operator configures.
    ///
    /// # Errors
    /// The first token that is no scope.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        text.split(' ').filter(|token| !token.is_empty()).map(Scope::parse).collect()
    }

    /// Parses an EHR's scope string: any case, legacy forms; what cannot be read is set aside and grants nothing.
    pub fn parse_lenient(text: &str) -> Lenient {
        lenient::parse(text)
    }

    pub fn insert(&mut self, scope: Scope) {
        match scope {
            Scope::Resource(resource) => self.insert_resource(resource),
            word => {
                self.words.insert(word);
            }
        }
    }

    pub(crate) fn insert_resource(&mut self, scope: ResourceScope) {
        if scope.permissions.is_empty() {
            return;
        }
        let level = self.level_mut(scope.context);
        let rules = match scope.resource {
            TypeOrAny::Any => &mut level.any,
            TypeOrAny::Type(name) => level.types.entry(name).or_default(),
        };
        let permissions = match scope.query {
            None => &mut rules.open,
            Some(query) => rules.constrained.entry(query).or_default(),
        };
        *permissions = *permissions | scope.permissions;
    }

    /// Whether `needed` (all of it) is permitted on a resource type in a context. Nothing needed is never permitted:
    /// an interaction without a permission is one that nobody has judged.
    pub fn permits(&self, context: Context, resource_type: &str, needed: Permissions) -> Coverage {
        let level = self.level(context);
        let rules = || [Some(&level.any), level.types.get(resource_type)].into_iter().flatten();
        let open = rules().map(|rules| rules.open).fold(Permissions::NONE, Permissions::union);
        let rest = needed.without(open);
        if needed.is_empty() {
            return Coverage::No;
        }
        if rest.is_empty() {
            return Coverage::Yes;
        }
        let mut by_query = BTreeMap::<&ScopeQuery, Permissions>::new();
        for (query, permissions) in rules().flat_map(|rules| &rules.constrained) {
            let known = by_query.entry(query).or_default();
            *known = *known | *permissions;
        }
        let enough: Vec<_> =
            by_query.into_iter().filter(|(_, known)| known.contains(rest)).map(|(query, _)| query.clone()).collect();
        if enough.is_empty() { Coverage::No } else { Coverage::Constrained(enough) }
    }

    /// Whether it holds a scope that is no resource scope.
    pub fn has(&self, word: &Scope) -> bool {
        self.words.contains(word)
    }

    /// Whether it says at least what this scope says.
    pub fn covers_scope(&self, scope: &Scope) -> bool {
        match scope {
            Scope::Resource(scope) => {
                self.effective(scope.context, &scope.resource, scope.query.as_ref()).contains(scope.permissions)
            }
            word => self.has(word),
        }
    }

    /// Whether it says at least what `other` says.
    pub fn covers(&self, other: &Self) -> bool {
        other.words.is_subset(&self.words) && other.resources().all(|scope| self.covers_scope(&Scope::Resource(scope)))
    }

    /// What both say. Contexts match only themselves; two unequal queries have nothing in common.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let mut both = self.intersect_resources(other);
        both.words = self.words.intersection(&other.words).cloned().collect();
        both
    }

    pub(crate) fn intersect_resources(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for scope in self.resources() {
            other.within(&scope).into_iter().for_each(|scope| both.insert_resource(scope));
        }
        both
    }

    pub fn has_resources(&self) -> bool {
        [Context::Patient, Context::User, Context::System].into_iter().any(|context| self.has_context(context))
    }

    /// Whether any resource scope has this context.
    pub fn has_context(&self, context: Context) -> bool {
        let level = self.level(context);
        !level.any.is_empty() || !level.types.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty() && !self.has_resources()
    }

    /// The resource scopes, by context, wildcard first.
    pub fn resources(&self) -> impl Iterator<Item = ResourceScope> {
        [Context::Patient, Context::User, Context::System].into_iter().flat_map(|context| {
            let level = self.level(context);
            let any = level.any.iter().map(|(query, permissions)| (TypeOrAny::Any, query, permissions));
            let types = level.types.iter().flat_map(|(name, rules)| {
                rules.iter().map(move |(query, permissions)| (TypeOrAny::Type(name.clone()), query, permissions))
            });
            any.chain(types).map(move |(resource, query, permissions)| ResourceScope {
                context,
                resource,
                permissions,
                query: query.cloned(),
            })
        })
    }

    /// The scopes that are not resource scopes.
    pub fn words(&self) -> impl Iterator<Item = &Scope> {
        self.words.iter()
    }

    /// The permissions on the whole of (context, resource, query): its own, and those of every broader scope.
    pub(crate) fn effective(&self, context: Context, resource: &TypeOrAny, query: Option<&ScopeQuery>) -> Permissions {
        let level = self.level(context);
        let own = match resource {
            TypeOrAny::Any => Permissions::NONE,
            TypeOrAny::Type(name) => level.types.get(name).map(|rules| rules.get(query)).unwrap_or_default(),
        };
        level.any.get(query) | own
    }

    /// The parts of this set that lie within one scope. A query of `scope` wins over the same one of the set: its text
    /// is the app's.
    pub(crate) fn within(&self, scope: &ResourceScope) -> Vec<ResourceScope> {
        let level = self.level(scope.context);
        let mut found = Vec::new();
        let mut take = |resource: &TypeOrAny, rules: &Rules| match &scope.query {
            None => found.extend(rules.iter().filter_map(|(query, permissions)| {
                part(scope, resource, query, permissions.intersect(scope.permissions))
            })),
            Some(own) => {
                found.extend(part(scope, resource, Some(own), rules.get(Some(own)).intersect(scope.permissions)));
            }
        };
        take(&scope.resource, &level.any);
        match &scope.resource {
            TypeOrAny::Any => level.types.iter().for_each(|(name, rules)| take(&TypeOrAny::Type(name.clone()), rules)),
            TypeOrAny::Type(name) => level.types.get(name).into_iter().for_each(|rules| take(&scope.resource, rules)),
        }
        found
    }

    /// The permissions of one scope that this set grants at least a part of.
    pub(crate) fn touched(&self, scope: &ResourceScope) -> Permissions {
        self.within(scope).into_iter().map(|part| part.permissions).fold(Permissions::NONE, Permissions::union)
    }

    /// Whether a broader scope of this set says all that this one says.
    pub(crate) fn is_redundant(&self, scope: &ResourceScope) -> bool {
        let level = self.level(scope.context);
        let broader = match (&scope.resource, &scope.query) {
            (TypeOrAny::Any, None) => Permissions::NONE,
            (TypeOrAny::Any, Some(_)) | (TypeOrAny::Type(_), None) => level.any.open,
            (TypeOrAny::Type(name), query) => {
                level.any.get(query.as_ref()) | level.types.get(name).map(|rules| rules.open).unwrap_or_default()
            }
        };
        broader.contains(scope.permissions)
    }

    /// The same set in the fewest scopes.
    #[must_use]
    pub(crate) fn minimal(&self) -> Self {
        let needed = self.resources().filter(|scope| !self.is_redundant(scope)).map(Scope::Resource);
        self.words.iter().cloned().chain(needed).collect()
    }

    /// The same set with other resource scopes under `patient/`, or none.
    #[must_use]
    pub(crate) fn with_patient_level_of(&self, source: Option<Context>) -> Self {
        let patient = source.map(|context| self.level(context).clone()).unwrap_or_default();
        Self { patient, ..self.clone() }
    }

    fn level(&self, context: Context) -> &Level {
        match context {
            Context::Patient => &self.patient,
            Context::User => &self.user,
            Context::System => &self.system,
        }
    }

    fn level_mut(&mut self, context: Context) -> &mut Level {
        match context {
            Context::Patient => &mut self.patient,
            Context::User => &mut self.user,
            Context::System => &mut self.system,
        }
    }
}

fn part(
    scope: &ResourceScope,
    resource: &TypeOrAny,
    query: Option<&ScopeQuery>,
    permissions: Permissions,
) -> Option<ResourceScope> {
    (!permissions.is_empty()).then(|| ResourceScope {
        context: scope.context,
        resource: resource.clone(),
        permissions,
        query: query.cloned(),
    })
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        let mut set = Self::default();
        set.extend(scopes);
        set
    }
}

impl Extend<Scope> for ScopeSet {
    fn extend<T: IntoIterator<Item = Scope>>(&mut self, scopes: T) {
        scopes.into_iter().for_each(|scope| self.insert(scope));
    }
}

impl fmt::Display for ScopeSet {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut write = |scope: &dyn fmt::Display| {
            let blank = if std::mem::take(&mut first) { "" } else { " " };
            write!(to, "{blank}{scope}")
        };
        self.words.iter().try_for_each(|word| write(word))?;
        self.resources().try_for_each(|scope| write(&scope))
    }
}

impl Serialize for ScopeSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ScopeSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}
