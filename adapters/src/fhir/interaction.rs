//! What a FHIR request does (FHIR R4, RESTful API).

mod classify;
mod target;

use bytes::Bytes;
use http::{HeaderMap, Method};

pub use self::{
    classify::{BodyKind, BundleFault, BundleKind, ClassifyFault, body_kind, bundle_kind, classify, is_id},
    target::{Pairs, TargetFault, encode_pairs, encode_target, parse_query, parse_target},
};

/// A request below a FHIR base, taken apart. Everything in it is decoded; what is sent is encoded anew.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub method: Method,
    /// Path segments below the base, percent-decoded; none is empty, `.` or `..`, none holds `/`.
    pub path: Vec<String>,
    /// The query's pairs in their order, repeats kept.
    pub query: Vec<(String, String)>,
    /// Only what the header allow-list lets through.
    pub headers: HeaderMap,
    /// Buffered bodies only; a streamed one travels beside.
    pub body: Bytes,
}

/// A FHIR interaction. `resource_type` is a checked R4 type name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interaction {
    Read {
        resource_type: String,
        id: String,
    },
    VRead {
        resource_type: String,
        id: String,
        version: String,
    },
    Create {
        resource_type: String,
        conditional: bool,
    },
    /// `id` absent: a conditional update.
    Update {
        resource_type: String,
        id: Option<String>,
    },
    Patch {
        resource_type: String,
        id: Option<String>,
    },
    Delete {
        resource_type: String,
        id: Option<String>,
    },
    SearchType {
        resource_type: String,
    },
    SearchSystem,
    /// `[base]/Patient/1/Observation?…`
    SearchCompartment {
        compartment: String,
        id: String,
        resource_type: Option<String>,
    },
    HistoryInstance {
        resource_type: String,
        id: String,
    },
    HistoryType {
        resource_type: String,
    },
    HistorySystem,
    /// `name` without `$`.
    Operation {
        name: String,
        resource_type: Option<String>,
        id: Option<String>,
    },
    Batch,
    Transaction,
    Capabilities,
    /// A further page: `[base]?_getpages=…` and other URLs that only an EHR understands.
    Page,
}

impl Interaction {
    /// The name for labels and logs. A compartment search counts as the search that it is.
    pub fn kind(&self) -> InteractionKind {
        match self {
            Self::Read { .. } => InteractionKind::Read,
            Self::VRead { .. } => InteractionKind::VRead,
            Self::Create { .. } => InteractionKind::Create,
            Self::Update { .. } => InteractionKind::Update,
            Self::Patch { .. } => InteractionKind::Patch,
            Self::Delete { .. } => InteractionKind::Delete,
            Self::SearchType { .. } | Self::SearchCompartment { resource_type: Some(_), .. } => {
                InteractionKind::SearchType
            }
            Self::SearchSystem | Self::SearchCompartment { resource_type: None, .. } => InteractionKind::SearchSystem,
            Self::HistoryInstance { .. } => InteractionKind::HistoryInstance,
            Self::HistoryType { .. } => InteractionKind::HistoryType,
            Self::HistorySystem => InteractionKind::HistorySystem,
            Self::Operation { .. } => InteractionKind::Operation,
            Self::Batch => InteractionKind::Batch,
            Self::Transaction => InteractionKind::Transaction,
            Self::Capabilities => InteractionKind::Capabilities,
            Self::Page => InteractionKind::Page,
        }
    }

    /// The type of the resources that it reads or writes, where the URL names one. Of a compartment
    /// search that is the type searched for, not the compartment's.
    pub fn resource_type(&self) -> Option<&str> {
        match self {
            Self::Read { resource_type, .. }
            | Self::VRead { resource_type, .. }
            | Self::Create { resource_type, .. }
            | Self::Update { resource_type, .. }
            | Self::Patch { resource_type, .. }
            | Self::Delete { resource_type, .. }
            | Self::SearchType { resource_type }
            | Self::HistoryInstance { resource_type, .. }
            | Self::HistoryType { resource_type } => Some(resource_type),
            Self::SearchCompartment { resource_type, .. } | Self::Operation { resource_type, .. } => {
                resource_type.as_deref()
            }
            Self::SearchSystem
            | Self::HistorySystem
            | Self::Batch
            | Self::Transaction
            | Self::Capabilities
            | Self::Page => None,
        }
    }

    /// The id of the one resource that the URL names.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Read { id, .. } | Self::VRead { id, .. } | Self::HistoryInstance { id, .. } => Some(id),
            Self::Update { id, .. } | Self::Patch { id, .. } | Self::Delete { id, .. } | Self::Operation { id, .. } => {
                id.as_deref()
            }
            _ => None,
        }
    }
}

/// The closed set of names that labels and logs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InteractionKind {
    Read,
    VRead,
    Create,
    Update,
    Patch,
    Delete,
    SearchType,
    SearchSystem,
    HistoryInstance,
    HistoryType,
    HistorySystem,
    Operation,
    Batch,
    Transaction,
    Capabilities,
    Page,
}

impl InteractionKind {
    pub const ALL: [Self; 16] = [
        Self::Read,
        Self::VRead,
        Self::Create,
        Self::Update,
        Self::Patch,
        Self::Delete,
        Self::SearchType,
        Self::SearchSystem,
        Self::HistoryInstance,
        Self::HistoryType,
        Self::HistorySystem,
        Self::Operation,
        Self::Batch,
        Self::Transaction,
        Self::Capabilities,
        Self::Page,
    ];

    /// FHIR's own code where it has one (`restful-interaction`).
    pub const fn text(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::VRead => "vread",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::SearchType => "search-type",
            Self::SearchSystem => "search-system",
            Self::HistoryInstance => "history-instance",
            Self::HistoryType => "history-type",
            Self::HistorySystem => "history-system",
            Self::Operation => "operation",
            Self::Batch => "batch",
            Self::Transaction => "transaction",
            Self::Capabilities => "capabilities",
            Self::Page => "page",
        }
    }
}
