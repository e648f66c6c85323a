//! Which disk a person means who wants one emptied or forgotten, and whether that can be.

use delugefs_proto::exit::Exit;
use delugefs_proto::ids::hex;
use delugefs_proto::worker_pb::{Mark, Peer};

use crate::failure::Failure;

/// As short as an id may be typed.
const ID_MIN: usize = 8;

/// The disk whose id begins so.
///
/// # Errors
/// When it is none or not the only one, and when a disk that is connected is to be forgotten.
pub fn find(disks: impl Iterator<Item = Peer>, beginning: &str, mark: Mark) -> Result<Peer, Failure> {
    let usage = |text: String| Failure::new(Exit::Usage, text).hint("`delugefs peers` lists the disks");
    let beginning = beginning.to_ascii_lowercase();
    if beginning.len() < ID_MIN {
        return Err(usage(format!("{beginning:?} is too short: give the first {ID_MIN} digits of the disk's id")));
    }
    let mut found = disks.filter(|disk| hex(&disk.disk_id).starts_with(&beginning));
    let disk =
        found.next().ok_or_else(|| usage(format!("no disk of the cluster has an id that begins with {beginning}")))?;
    if found.next().is_some() {
        return Err(usage(format!("several disks have ids that begin with {beginning}")));
    }
    if mark == Mark::Forgotten && disk.connected {
        let text = format!("disk {beginning} is connected: what it holds is there");
        return Err(
            Failure::new(Exit::InUse, text).hint("`delugefs disk drain` empties a disk that is to be taken away")
        );
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_disk_is_meant_and_none_that_is_here_is_forgotten() {
        let disk = |first: u8, last: u8, connected| {
            let mut id = vec![first; 32];
            id[31] = last;
            Peer { disk_id: id, connected, ..Peer::default() }
        };
        let disks = || [disk(0xab, 1, true), disk(0xcd, 1, false), disk(0xcd, 2, false)].into_iter();
        assert_eq!(find(disks(), "ABababab", Mark::Draining).unwrap().disk_id[0], 0xab);
        for wrong in ["", "ababab", "cdcdcdcd", "12345678"] {
            assert_eq!(find(disks(), wrong, Mark::None).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
        let id = hex(&disk(0xcd, 2, false).disk_id);
        assert_eq!(find(disks(), &id, Mark::Forgotten).unwrap().disk_id[31], 2);
        assert_eq!(find(disks(), "abababab", Mark::Forgotten).unwrap_err().exit, Exit::InUse);
    }
}
