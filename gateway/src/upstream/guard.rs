//! Which addresses are dialled.
//!
//! URLs come as data (discovery documents, JWK sets, names that an attacker's DNS answers for). What
//! keeps them from reaching our own network is the address that is really dialled, so it is judged
//! there: literals in the connector, names in the resolver ([`super::connector`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// What may be dialled for a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    PublicOnly,
    /// The site says `allow_private`: private and loopback addresses too.
    PrivateToo,
}

/// An address that was not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {0} is not public: it is dialled only for a site with `allow_private = true`")]
pub struct RefusedAddress(pub IpAddr);

impl Guard {
    pub const fn of(allow_private: bool) -> Self {
        if allow_private { Self::PrivateToo } else { Self::PublicOnly }
    }

    pub fn judge(self, ip: IpAddr) -> Result<(), RefusedAddress> {
        if self.permits(ip) { Ok(()) } else { Err(RefusedAddress(ip)) }
    }

    pub fn permits(self, ip: IpAddr) -> bool {
        // `::ffff:127.0.0.1` is 127.0.0.1 to the kernel.
        match (self, ip.to_canonical()) {
            (Self::PublicOnly, IpAddr::V4(ip)) => !SPECIAL_V4.iter().any(|net| net.contains(&ip)),
            (Self::PublicOnly, IpAddr::V6(ip)) => {
                GLOBAL_V6.contains(&ip) && !SPECIAL_V6.iter().any(|net| net.contains(&ip))
            }
            // Link-local stays out: no EHR lives there, a cloud's metadata service with its credentials does.
            (Self::PrivateToo, IpAddr::V4(ip)) => {
                !(ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_link_local())
            }
            (Self::PrivateToo, IpAddr::V6(ip)) => {
                !(ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local())
            }
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// IANA's IPv4 Special-Purpose Address Registry, what is not globally reachable, and multicast.
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];

/// All that is allocated as global unicast. NAT64's `64:ff9b::/96` is outside: it embeds any IPv4.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);

/// Protocol assignments (Teredo, ORCHID …), documentation, 6to4 (embeds any IPv4).
const SPECIAL_V6: [Ipv6Net; 4] = [v6(0x2001, 0, 23), v6(0x2001, 0xdb8, 32), v6(0x2002, 0, 16), v6(0x3fff, 0, 20)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_judged() {
        const NEVER: [bool; 2] = [false, false];
        const PRIVATE: [bool; 2] = [false, true];
        const PUBLIC: [bool; 2] = [true, true];
        let table = [
            ("8.8.8.8", PUBLIC),
            ("172.15.255.255", PUBLIC),
            ("172.32.0.1", PUBLIC),
            ("100.63.255.255", PUBLIC),
            ("223.255.255.255", PUBLIC),
            ("2600:1f18::1", PUBLIC),
            ("2a00:1450:4001::1", PUBLIC),
            ("::ffff:8.8.8.8", PUBLIC),
            ("10.0.0.1", PRIVATE),
            ("100.64.0.1", PRIVATE),
            ("127.0.0.1", PRIVATE),
            ("127.255.255.255", PRIVATE),
            ("172.16.0.1", PRIVATE),
            ("172.31.255.255", PRIVATE),
            ("192.168.1.1", PRIVATE),
            ("192.0.0.8", PRIVATE),
            ("198.19.255.255", PRIVATE),
            ("::1", PRIVATE),
            ("fc00::1", PRIVATE),
            ("fd12:3456::1", PRIVATE),
            ("::ffff:127.0.0.1", PRIVATE),
            ("::ffff:10.0.0.1", PRIVATE),
            ("64:ff9b::7f00:1", PRIVATE),
            ("2002:7f00:1::", PRIVATE),
            ("2001::1", PRIVATE),
            ("2001:1ff::1", PRIVATE),
            ("2001:db8::1", PRIVATE),
            ("3fff::1", PRIVATE),
            ("4000::1", PRIVATE),
            ("0.0.0.0", NEVER),
            ("169.254.169.254", NEVER),
            ("::ffff:169.254.169.254", NEVER),
            ("224.0.0.1", NEVER),
            ("255.255.255.255", NEVER),
            ("::", NEVER),
            ("ff02::1", NEVER),
            ("fe80::1", NEVER),
        ];
        for (address, expected) in table {
            let ip = address.parse().unwrap();
            let judged = [Guard::PublicOnly.permits(ip), Guard::PrivateToo.permits(ip)];
            assert_eq!(judged, expected, "{address}: [public only, private too]");
        }
    }
}
