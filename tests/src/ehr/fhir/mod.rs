//! The FHIR server.
