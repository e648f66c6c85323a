//! What the supervisor asks and tells: membership, hints, and the disks of the cluster as this one sees them.

use std::time::Instant;

use delugefs_proto::codec::encode_version_vector;
use delugefs_proto::errno::FsResult;
use delugefs_proto::ids::{ContentId, DiskId};
use delugefs_proto::peer_pb::About;
use delugefs_proto::worker_pb as pb;

use super::Net;
use crate::engine::Following;

impl Net {
    /// Members: join a set, and say all of it. Blocks on the disk.
    ///
    /// # Errors
    /// `EINVAL` when it is not a set of this cluster, and what the disk says.
    pub fn take_members(&self, request: &pb::MembersRequest) -> FsResult<pb::MembersReply> {
        let mut changed = false;
        if !request.set.is_empty() {
            changed = self.members.absorb(&request.set)?;
            let host = (request.host_id.clone(), request.host_label.clone());
            let mut known = self.host.lock();
            if *known != host {
                *known = host;
                let _ = self.about_changed.send(()); // fails when there is no link
            }
            self.wake.notify_one();
        }
        let set = self.members.get().map(|members| members.encode()).unwrap_or_default();
        Ok(pb::MembersReply { set, changed })
    }

    /// Hints: where disks may be.
    pub fn take_hints(&self, request: &pb::HintsRequest) {
        let me = self.engine.folder.disk_id();
        for hint in &request.hints {
            let disk = DiskId::from_slice(&hint.disk_id);
            if (disk.is_none() && !hint.disk_id.is_empty()) || disk == Some(me) {
                continue;
            }
            // One lock at a time: elsewhere the book is looked into with the table locked.
            let is_new = self.book.lock().hint(disk, &hint.address, |disk| self.members.is_disk(disk));
            // A new address of a disk that could not be reached: at once.
            if let Some(disk) = disk.filter(|_| is_new)
                && let Some(other) = self.table.lock().disks.get_mut(&disk)
            {
                other.next_try = None;
            }
        }
        self.wake.notify_one();
    }

    /// Disks of this host that are connected and may keep contents, with what they last said of their room: total and free
    /// bytes.
    pub fn roommates(&self) -> Vec<(DiskId, u64, u64)> {
        let (host, _) = self.host.lock().clone();
        let table = self.table.lock();
        let here = table.disks.iter().filter(|(_, other)| other.link.is_some());
        here.filter_map(|(disk, other)| Some((*disk, other.about.as_ref()?)))
            .filter(|(_, about)| !host.is_empty() && about.host_id == host && !about.lazy && !about.read_only)
            .map(|(disk, about)| (disk, about.total_bytes, about.free_bytes))
            .collect()
    }

    /// How far a disk has followed this one; of one that is not connected nothing is known.
    pub fn following(&self, disk: DiskId) -> Following {
        let table = self.table.lock();
        let other = table.disks.get(&disk).filter(|other| other.link.is_some());
        other.map(|other| Following { state: other.state, seq: other.has_of_ours }).unwrap_or_default()
    }

    /// Add to an answer who holds a content, also those that are away. Not who was revoked: what it has is the cluster's no more.
    pub fn add_holders(&self, content: ContentId, reply: &mut pb::WhereIsReply) {
        let me = self.engine.folder.disk_id();
        let marks = self.engine.marks().unwrap_or_default();
        let holders = self.known_holders(content);
        for disk in holders.iter().filter(|disk| **disk != me && self.members.is_disk(**disk)) {
            let id = disk.to_hex();
            if marks.get(disk) == Some(&pb::Mark::Forgotten) {
                reply.forgotten.push(id.clone());
            }
            if !self.table.lock().is_there(*disk) {
                reply.away.push(id.clone());
            }
            reply.disk_ids.push(id);
        }
        if holders.contains(&me) {
            reply.disk_ids.push(me.to_hex());
        }
        reply.disk_ids.sort();
        reply.disk_ids.dedup();
    }

    /// For the supervisor: this disk, the others, and the members.
    pub fn peers(&self) -> pb::PeersReply {
        let marks = self.engine.marks().unwrap_or_default();
        let mark = |disk| marks.get(&disk).copied().unwrap_or_default().into();
        let members = self.members.get();
        let me = self.engine.folder.disk_id();
        let mine = self.about_now();
        let mut reply = pb::PeersReply {
            members: members.as_ref().map(|members| members.encode()).unwrap_or_default(),
            me: Some(pb::Peer {
                connected: true,
                linked: true,
                told: true,
                contents: self.holdings.lock().count(me),
                state_commit: self.engine.commits().borrow().to_string(),
                mark: mark(me),
                seen: encode_version_vector(&self.engine.committed().ctx),
                ..describe(me, &mine)
            }),
            peers: Vec::new(),
        };
        let Some(members) = members else { return reply };
        let (table, book, holdings) = (self.table.lock(), self.book.lock(), self.holdings.lock());
        for (disk, member) in members.disks().iter().filter(|(disk, _)| **disk != me) {
            let other = table.disks.get(disk);
            let about = other.and_then(|other| other.about.clone()).unwrap_or_default();
            let mut peer = describe(*disk, &about);
            if peer.host_label.is_empty() {
                peer.host_label.clone_from(&member.label);
            }
            peer.admitted_by = member.by.0.to_vec();
            (peer.connected, peer.linked) = (table.is_there(*disk), table.is_connected(*disk));
            // One that is here says itself where it is, as soon as its supervisor has told it: it may have moved.
            if peer.host_id.is_empty() && !peer.connected {
                peer.host_id = member.by.0.to_vec();
            }
            peer.absent_s = match other.and_then(|other| other.last_seen) {
                _ if peer.connected => 0,
                Some(at) => Instant::now().duration_since(at).as_secs().min(u64::from(u32::MAX) - 1) as u32,
                None => u32::MAX,
            };
            let state = other.and_then(|other| other.state);
            peer.state_commit = state.map(|commit| commit.to_string()).unwrap_or_default();
            peer.error = other.and_then(|other| other.error.clone()).unwrap_or_default();
            peer.addresses = book.of(*disk);
            peer.mark = mark(*disk);
            peer.contents = holdings.count(*disk);
            peer.told = holdings.has_told(*disk, table.is_there(*disk));
            reply.peers.push(peer);
        }
        reply
    }
}

fn describe(disk: DiskId, about: &About) -> pb::Peer {
    pb::Peer {
        disk_id: disk.0.to_vec(),
        host_id: about.host_id.clone(),
        host_label: about.host_label.clone(),
        site: about.site.clone(),
        lazy: about.lazy,
        total_bytes: about.total_bytes,
        free_bytes: about.free_bytes,
        read_only: about.read_only,
        full: about.full,
        program: about.program.clone(),
        ..pb::Peer::default()
    }
}
