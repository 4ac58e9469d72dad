//! Ports for processes that are told theirs before they listen.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, bail};

/// A port for a process to listen on, given out once in this process.
///
/// Not one of the kernel's choice: it takes the ports of outgoing connections from the same range (Linux:
/// 32768 to 60999), and one of those may have it before the process listens.
///
/// # Errors
/// When none of the ports below that range can be had.
pub fn free_port() -> Result<u16> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin at different places.
    let begin = std::process::id().wrapping_mul(997);
    for _ in 0..COUNT {
        let port = FIRST + begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(port)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port from {FIRST} to {} can be listened on", FIRST + COUNT - 1)
}
