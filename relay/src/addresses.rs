//! Where a relay can be reached by the nodes of its blocks: the private addresses of this host. Called by whoever fills `RelayOptions::listen`.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use std::net::{IpAddr, Ipv6Addr};

/// Addresses of each interface that is up, by its name; not those that only hold on their own link.
///
/// # Errors
/// When the system does not list its interfaces.
pub fn by_interface() -> std::io::Result<Vec<(String, IpAddr)>> {
    let mut found = Vec::new();
    for interface in getifaddrs()? {
        let Some(address) = interface.address else { continue };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) if !v6.ip().is_unicast_link_local() => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        if interface.flags.contains(InterfaceFlags::IFF_UP) {
            found.push((interface.interface_name, ip));
        }
    }
    Ok(found)
}

/// Addresses that stay within a site: RFC 1918, the shared ones of RFC 6598, and unique local ones of IPv6 (RFC 4193), on interfaces that are up.
/// Never loopback, never link-local, never public.
///
/// # Errors
/// When the system does not list its interfaces.
pub fn private_addresses() -> std::io::Result<Vec<String>> {
    let all = by_interface()?.into_iter().map(|(_, ip)| ip);
    let mut found: Vec<String> = all.filter(|ip| is_private(*ip)).map(|ip| ip.to_string()).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

fn is_private(ip: IpAddr) -> bool {
    let unique_local = |v6: Ipv6Addr| v6.segments()[0] & 0xfe00 == 0xfc00;
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => unique_local(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_within_a_site_is_private() {
        for good in ["10.1.2.3", "172.16.0.1", "172.31.9.9", "192.168.1.1", "100.64.0.1", "fd00::1"] {
            assert!(is_private(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "127.0.0.1",
            "8.8.8.8",
            "172.32.0.1",
            "169.254.1.1",
            "100.128.0.1",
            "::1",
            "fe80::1",
            "2001:db8::1",
        ] {
            assert!(!is_private(bad.parse().unwrap()), "{bad}");
        }
        assert!(private_addresses().unwrap().iter().all(|a| is_private(a.parse().unwrap())));
    }
}
