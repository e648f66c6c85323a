//! Where somebody calls from who may be a stranger: what is counted or noted for each of them.

use std::net::{IpAddr, Ipv6Addr};

/// Who can call from one IPv6 address can do so from all that begin alike. Those of a link begin alike on all its hosts.
pub fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) if address.is_unicast_link_local() => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}
