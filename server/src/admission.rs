//! Who may hold a connection: strangers in a lobby of few places, principals in the others.
//!
//! Every connection begins as a stranger, and is one until its handshake has shown a key that is
//! enrolled. **The lobby never refuses.** Where it is full, whoever comes takes the place of one
//! that is there: the oldest of those that come from the address with the most of them. So a flood
//! of sockets that never finish pushes out its own, and an honest handshake, which takes a round
//! trip or two, is through before its turn comes: a flooder must open as many connections as the
//! lobby has places, within that time, from many addresses or from the same one.
//!
//! Nobody in the lobby has a claim on its place but for the moment: neither who has finished a
//! handshake with a key of its own nor who has not. Both cost the flooder little.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use strongroom_protocol::id::PrincipalId;
use strongroom_protocol::limits::STRANGER_SHARE;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::refusals::Reason;

/// All connections of the listener.
pub struct Admission {
    lobby: Mutex<Lobby>,
    strangers: Arc<Semaphore>,
    principals: Mutex<Principals>,
    principals_max: u32,
    per_principal_max: u32,
}

/// Where connections come from: an IPv4 address, or the 64 bits of an IPv6 address that name a
/// network, because whoever has one of its addresses has all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Origin(u64);

#[derive(Default)]
struct Lobby {
    /// By the number of their arrival.
    there: BTreeMap<u64, Waiting>,
    counts: HashMap<Origin, usize>,
    arrivals: u64,
}

struct Waiting {
    origin: Origin,
    leave: oneshot::Sender<()>,
}

#[derive(Default)]
struct Principals {
    count: u32,
    of_each: HashMap<PrincipalId, u32>,
}

/// A connection in the lobby; dropping it gives its place back.
pub struct Stranger {
    admission: Arc<Admission>,
    number: u64,
    displaced: oneshot::Receiver<()>,
    _place: OwnedSemaphorePermit,
}

/// A principal's connection; dropping it gives its place back.
pub struct Place {
    admission: Arc<Admission>,
    principal: PrincipalId,
}

impl Admission {
    /// Places for `connections` in all, of which the lobby has its share.
    pub fn new(connections: u32, per_principal_max: u32) -> Self {
        let strangers = (connections / STRANGER_SHARE).max(1);
        let principals_max = connections.saturating_sub(strangers).max(1);
        let permits = usize::try_from(strangers).unwrap_or(usize::MAX);
        Self {
            lobby: Mutex::default(),
            strangers: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            principals: Mutex::default(),
            principals_max,
            per_principal_max,
        }
    }

    /// Takes a connection into the lobby. Where it is full, this waits until the one that was
    /// told to leave is gone, so there are never more connections than places.
    pub async fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let origin = Origin::of(address);
        let place = match self.strangers.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                self.lobby.lock().displace_for(origin);
                self.strangers.clone().acquire_owned().await.ok()?
            }
        };
        let (number, displaced) = self.lobby.lock().enter(origin);
        Some(Stranger { admission: self.clone(), number, displaced, _place: place })
    }

    /// Takes a connection whose key is enrolled out of the lobby.
    pub fn admit(self: &Arc<Self>, principal: PrincipalId) -> Result<Place, Reason> {
        let mut principals = self.principals.lock();
        if principals.count >= self.principals_max {
            return Err(Reason::TooManyConnections);
        }
        let held = principals.of_each.get(&principal).copied().unwrap_or(0);
        if held >= self.per_principal_max {
            return Err(Reason::PrincipalConnections);
        }
        principals.count = principals.count.saturating_add(1);
        principals.of_each.insert(principal, held.saturating_add(1));
        Ok(Place { admission: self.clone(), principal })
    }

    /// Connections in the lobby.
    pub fn stranger_count(&self) -> usize {
        self.lobby.lock().there.len()
    }
}

impl Origin {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u64::from(u32::from(address))),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                // No network of IPv6 that is routed begins with 32 bits of zero.
                Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
        }
    }
}

impl Lobby {
    fn enter(&mut self, origin: Origin) -> (u64, oneshot::Receiver<()>) {
        let (leave, displaced) = oneshot::channel();
        let number = self.arrivals;
        self.arrivals = self.arrivals.saturating_add(1);
        self.there.insert(number, Waiting { origin, leave });
        let count = self.counts.entry(origin).or_default();
        *count = count.saturating_add(1);
        (number, displaced)
    }

    fn leave(&mut self, number: u64) -> Option<Waiting> {
        let left = self.there.remove(&number)?;
        if let Some(count) = self.counts.get_mut(&left.origin) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&left.origin);
            }
        }
        Some(left)
    }

    /// Tells one to leave, so that a connection from `origin` can come in.
    fn displace_for(&mut self, origin: Origin) {
        let crowd = |of: &Origin| {
            let count = self.counts.get(of).copied().unwrap_or(0);
            count.saturating_add(usize::from(*of == origin))
        };
        let most = self.counts.keys().map(crowd).max().unwrap_or(0);
        let oldest = self.there.iter().find(|(_, there)| crowd(&there.origin) == most);
        let Some(number) = oldest.map(|(number, _)| *number) else { return };
        if let Some(left) = self.leave(number) {
            // One that is just ending needs no word.
            let _ = left.leave.send(());
        }
    }
}

impl Stranger {
    /// Ends when somebody else was given the place.
    pub async fn displaced(&mut self) {
        if (&mut self.displaced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.admission.lobby.lock().leave(self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut principals = self.admission.principals.lock();
        principals.count = principals.count.saturating_sub(1);
        if let Some(held) = principals.of_each.get_mut(&self.principal) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                principals.of_each.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOD: u64 = 0xa;
    const HONEST: u64 = 0xb;

    fn lobby_of(origins: &[u64]) -> (Lobby, Vec<oneshot::Receiver<()>>) {
        let mut lobby = Lobby::default();
        let told = origins.iter().map(|origin| lobby.enter(Origin(*origin)).1).collect();
        (lobby, told)
    }

    fn who_leaves(origins: &[u64], newcomer: u64) -> usize {
        let (mut lobby, mut told) = lobby_of(origins);
        lobby.displace_for(Origin(newcomer));
        let left = told.iter_mut().position(|told| told.try_recv().is_ok()).unwrap();
        assert_eq!(lobby.there.len(), origins.len() - 1);
        let counted: usize = lobby.counts.values().sum();
        assert_eq!(counted, lobby.there.len());
        left
    }

    #[test]
    fn a_flood_from_one_address_pushes_out_its_own_oldest() {
        let there = [HONEST, FLOOD, FLOOD, HONEST, FLOOD];
        assert_eq!(who_leaves(&there, FLOOD), 1);
        assert_eq!(who_leaves(&there, HONEST), 0, "two and itself against three: a tie, by age");
        assert_eq!(who_leaves(&there, 0xc), 1);
    }

    #[test]
    fn where_all_come_alone_the_oldest_leaves_and_who_comes_twice_leaves_first() {
        assert_eq!(who_leaves(&[1, 2, 3], 4), 0);
        assert_eq!(who_leaves(&[1, 2, 3], 3), 2);
    }

    #[test]
    fn networks_of_ipv6_are_one_origin_and_mapped_addresses_are_what_they_are() {
        let origin = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(origin("2001:db8:0:1::1"), origin("2001:db8:0:1:ffff::2"));
        assert_ne!(origin("2001:db8:0:1::1"), origin("2001:db8:0:2::1"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
    }

    #[tokio::test]
    async fn places_come_back_and_the_lobby_is_never_larger_than_it_is() {
        let admission = Arc::new(Admission::new(16, 2));
        let address = IpAddr::from([192, 0, 2, 1]);
        let mut first = admission.enter(address).await.unwrap();
        let second = admission.enter(address).await.unwrap();
        assert_eq!(admission.stranger_count(), 2);
        // The third comes in only when the first, which is told to leave, is gone.
        let entering = tokio::spawn({
            let admission = admission.clone();
            async move { admission.enter(address).await }
        });
        first.displaced().await;
        assert!(!entering.is_finished());
        drop(first);
        let third = entering.await.unwrap().unwrap();
        assert_eq!(admission.stranger_count(), 2);
        drop((second, third));
        assert_eq!(admission.stranger_count(), 0);
        assert!(admission.lobby.lock().counts.is_empty());
    }

    #[test]
    fn principals_have_a_share_each_and_never_the_lobbys() {
        let admission = Arc::new(Admission::new(8, 3));
        let admit = |number| admission.admit(PrincipalId([number; 16]));
        let held: Vec<Place> = (0..3).map(|_| admit(1).ok().unwrap()).collect();
        assert_eq!(admit(1).err(), Some(Reason::PrincipalConnections));
        let others: Vec<Place> = (0..4).map(|n| admit(2 + n / 2).ok().unwrap()).collect();
        assert_eq!(admit(9).err(), Some(Reason::TooManyConnections));
        drop(held);
        drop(admit(1).ok().unwrap());
        assert_eq!(admission.principals.lock().of_each.len(), 2);
        drop(others);
        assert_eq!(admission.principals.lock().count, 0);
    }
}
