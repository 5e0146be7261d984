//! The addresses of this host, looked at once for all connections of the process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::testing;

/// Addresses used at most: a host full of container bridges gains nothing from more.
const MAX_ADDRESSES: usize = 8;
/// How often the list is looked at while there are connections.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Addresses of this host, in the order of their worth.
pub(crate) type Addresses = Arc<[IpAddr]>;

/// Addresses that ICE may use, IPv4 loopback last: a server may run on this host. Left out are
/// link-local ones (they need a scope, and lead nowhere beyond) and IPv6 loopback, which is bound
/// when the remote names it.
fn look(known: &[IpAddr]) -> Addresses {
    if let Some(addresses) = testing::addresses() {
        return addresses.into();
    }
    match if_addrs::get_if_addrs() {
        Ok(interfaces) => {
            usable(interfaces.iter().map(if_addrs::Interface::ip), &outward_addresses(), known)
                .into()
        }
        Err(error) => {
            log::warn!("network interfaces cannot be listed: {error}");
            Arc::from([IpAddr::V4(Ipv4Addr::LOCALHOST)])
        }
    }
}

/// The addresses that this host's packets to the world have, by its routes. Nothing is sent: the
/// destinations are of those kept for documentation (RFC 5737, RFC 3849).
fn outward_addresses() -> Vec<IpAddr> {
    let source = |any: IpAddr, world: IpAddr| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((world, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let v4 = source(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(198, 51, 100, 1).into());
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let v6 = source(Ipv6Addr::UNSPECIFIED.into(), v6.into());
    v4.into_iter().chain(v6).collect()
}

/// Those of all addresses that are used: the outward ones of each family first, then those known before,
/// since calls may run over them.
fn usable(all: impl Iterator<Item = IpAddr>, outward: &[IpAddr], known: &[IpAddr]) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = all
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast())
        .filter(|ip| match ip {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
        })
        .collect();
    found.sort_unstable_by_key(|ip| (!outward.contains(ip), !known.contains(ip), *ip));
    found.dedup();
    // Neither family may crowd out the other.
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = found.into_iter().partition(IpAddr::is_ipv4);
    let room = MAX_ADDRESSES - 1;
    let v6_room = room - v4.len().min(room.div_ceil(2));
    let v6: Vec<IpAddr> = v6.into_iter().take(v6_room).collect();
    let v4 = v4.into_iter().take(room - v6.len());
    v4.chain(v6.iter().copied()).chain([IpAddr::V4(Ipv4Addr::LOCALHOST)]).collect()
}

/// The list as it is now, and as it changes. Call it within the engine's runtime.
pub(crate) fn watch_addresses() -> watch::Receiver<Addresses> {
    static LIST: OnceLock<watch::Sender<Addresses>> = OnceLock::new();
    let mut first = false;
    let list = LIST.get_or_init(|| {
        first = true;
        watch::channel(look(&[])).0
    });
    if first {
        tokio::spawn(keep_looking(list));
    } else if list.receiver_count() == 0 {
        // Nobody was there to look for.
        let known = list.borrow().clone();
        update(list, look(&known));
    }
    let mut receiver = list.subscribe();
    receiver.mark_unchanged();
    receiver
}

fn update(list: &watch::Sender<Addresses>, now: Addresses) {
    list.send_if_modified(|known| {
        let changed = *known != now;
        if changed {
            *known = now;
        }
        changed
    });
}

async fn keep_looking(list: &'static watch::Sender<Addresses>) {
    let mut ticks = interval(testing::look_every().unwrap_or(LOOK_EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if list.receiver_count() == 0 {
            continue;
        }
        // A handful of netlink messages, but no thread of the audio path waits for the kernel.
        let known = list.borrow().clone();
        if let Ok(now) = tokio::task::spawn_blocking(move || look(&known)).await {
            update(list, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn both_families_are_used_and_link_local_and_loopback_ones_are_not() {
        let all = ips(&[
            "127.0.0.1",
            "::1",
            "fe80::1",
            "169.254.3.4",
            "2001:db8::1",
            "10.0.0.1",
            "10.0.0.1",
            "fd00::1",
            "0.0.0.0",
        ]);
        let expected = ips(&["10.0.0.1", "2001:db8::1", "fd00::1", "127.0.0.1"]);
        assert_eq!(usable(all.into_iter(), &[], &[]), expected);
    }

    #[test]
    fn many_addresses_of_one_family_leave_room_for_the_other() {
        let v4 = (1..20).map(|i| IpAddr::from([10, 0, 0, i]));
        let v6 = (1..20).map(|i| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, i]));
        let used = usable(v4.clone().chain(v6), &[], &[]);
        assert_eq!(used.len(), MAX_ADDRESSES);
        assert_eq!(used.iter().filter(|ip| ip.is_ipv6()).count(), 3);
        assert_eq!(usable(v4, &[], &[]).len(), MAX_ADDRESSES);
    }

    #[test]
    fn the_address_that_leads_outwards_is_not_crowded_out_by_bridges() {
        let bridges = (17..30).map(|i| IpAddr::from([172, i, 0, 1]));
        let all = bridges.chain(ips(&["192.168.1.5", "2001:db8::1", "2001:db8::2"]));
        let used = usable(all.clone(), &ips(&["192.168.1.5", "2001:db8::2"]), &[]);
        assert_eq!(used.len(), MAX_ADDRESSES);
        // A look that finds no route closes no socket of a call.
        assert_eq!(usable(all, &[], &used).iter().collect::<HashSet<_>>(), used.iter().collect());
        assert_eq!(used[0], ips(&["192.168.1.5"])[0]);
        assert!(used.contains(&ips(&["2001:db8::2"])[0]));
    }
}
