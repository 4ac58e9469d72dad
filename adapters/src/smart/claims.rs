//! Claims of an EHR's id_token, and `fhirUser`.
