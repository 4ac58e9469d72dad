//! Custody and the store by themselves, without the rest of a gateway: killed many times ([`interrupt`]) and
//! measured at size ([`bench`]).

pub mod bench;
pub mod grants;
pub mod interrupt;
pub mod place;
