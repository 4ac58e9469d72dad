//! Launch context (SMART App Launch 2.2, "Scopes and Launch Context"), normalised.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What an EHR's token answer says of the launch, in the form in which an app is told it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchContext {
    /// A bare id, never a reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patient: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encounter: Option<String>,
    /// Objects, as 2.2 has them.
    #[serde(rename = "fhirContext", skip_serializing_if = "Vec::is_empty")]
    pub fhir_context: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub need_patient_banner: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smart_style_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Members whose names begin with `__` or are absolute URIs: passed on as they are.
    #[serde(flatten)]
    pub extensions: Map<String, Value>,
}
