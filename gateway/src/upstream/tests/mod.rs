//! Against real servers in the process. Paused time only where no socket is waited for but one that
//! stays silent.

mod client;
mod discovery;
mod fetch;
mod id_token;
mod keys;
mod support;
mod token;
