//! The gateway's outermost room: sockets, limits, request ids, routes, and the forms of errors.
//!
//! One acceptor hands sockets to N workers, each a thread with a runtime and an upstream client of its
//! own. `/fhir` is served there, by one concrete service, without a layer in between. Everything else
//! (authorization server, pages) crosses over to the control runtime and passes a stack of layers.

pub mod cors;
pub mod listen;
pub mod respond;
pub mod routes;
pub mod service;
pub mod stack;
pub mod tls;
