//! A disk whose bytes rot: nobody is ever shown a wrong byte of what another disk holds, and the disk hears of it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::lab::Lab;
use super::load::digest;
use super::stories::{bytes, joined};
use super::wait_for;

/// Warnings and errors a host may log about all of this.
const LINES_MAX: usize = 20;

/// Where a host's disk keeps a content.
fn stored(lab: &Lab, at: usize, content: &[u8]) -> PathBuf {
    let hex: String = digest(content).0.iter().map(|byte| format!("{byte:02x}")).collect();
    lab.hosts[at].path(&format!("d/data/{}/{hex}", &hex[..2]))
}

/// Change a byte in the middle of a content on a host's disk; done twice, it is right again.
fn rot(lab: &Lab, at: usize, content: &[u8]) {
    let path = stored(lab, at, content);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let (mut byte, middle) = ([0], content.len() as u64 / 2);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[!byte[0]], middle).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
}

/// Read a file from its begin as far as it goes: whether all of it came. Never a byte that is not right.
pub fn read(lab: &Lab, at: usize, name: &str, content: &[u8]) -> bool {
    let Ok(file) = File::open(lab.hosts[at].file(name)) else { return false };
    let mut block = vec![0; 64 << 10];
    let mut offset = 0;
    loop {
        match file.read_at(&mut block, offset as u64) {
            Ok(0) => return offset == content.len(),
            Ok(length) => {
                assert!(block[..length] == content[offset..][..length], "{name} on host {at}: wrong at {offset}");
                offset += length;
            }
            Err(_) => return false,
        }
    }
}

#[test]
fn rotten_bytes_are_never_shown_elsewhere() {
    let Some(lab) = joined(3) else { return };
    let contents = |more: usize| [bytes(100_000 + more), bytes((9 << 20) + more)];
    let host = &lab.hosts[0];
    fs::create_dir(host.file("one")).unwrap();
    assert_eq!(host.says(&["copies", host.file("one").to_str().unwrap(), "1"]).0, 0);

    // Of these there is one copy.
    let single = contents(0);
    let names = ["one/small", "one/large"];
    for (name, content) in names.iter().zip(&single) {
        fs::write(host.file(name), content).unwrap();
        let arrived = || fs::metadata(lab.hosts[1].file(name)).is_ok_and(|meta| meta.len() == content.len() as u64);
        wait_for(name, || lab.logs(), arrived);
        wait_for("it to be stored", || lab.logs(), || lab.hosts[1].copies(name) == 1);
        rot(&lab, 0, content);
    }
    std::thread::scope(|scope| {
        let lab = &lab;
        for (name, content) in names.iter().zip(&single) {
            scope.spawn(move || assert!(!read(lab, 1, name, content), "{name} has no right copy"));
        }
    });
    // The disk that heard of it says so; as long as nobody has a whole one, what can be read of it still can.
    let is_said = || host.says(&["status", "-x"]).1.contains("2 of its contents are damaged");
    wait_for("status to say that they are damaged", || host.says(&["status"]).1 + &lab.logs(), is_said);
    assert!(single.iter().all(|content| stored(&lab, 0, content).exists()));
    let (code, text) = host.says(&["scrub"]);
    assert_eq!(code, 20, "{text}");
    for (name, content) in names.iter().zip(&single) {
        let stored = stored(&lab, 0, content);
        assert!(stored.exists() && !stored.with_extension("damaged").exists(), "the only one stays: {text}");
        fs::write(host.file(name), content).unwrap();
        wait_for("the right bytes", || lab.logs(), || read(&lab, 1, name, content));
        assert!(stored.exists() && !stored.with_extension("damaged").exists());
    }
    wait_for("status to say so no more", || host.says(&["status"]).1 + &lab.logs(), || !is_said());

    // Of these there are two, and one of them rots: the third host gets the other one.
    for (name, content) in ["small", "large"].iter().zip(contents(1)) {
        fs::write(host.file(name), &content).unwrap();
        wait_for("two copies", || lab.logs(), || lab.hosts.iter().all(|host| host.copies(name) == 2));
        let third = (1..3).find(|at| !stored(&lab, *at, &content).exists()).expect("there are two copies");
        rot(&lab, 0, &content);
        wait_for("the right bytes", || lab.logs(), || read(&lab, third, name, &content));
    }
    let lines = lab.unexpected(&[]);
    assert!(lines.len() <= LINES_MAX, "logged again and again:\n{}", lines.join("\n"));
    // The third host may have got the good copy: then a scrub is the first that meets the other one.
    host.says(&["scrub"]);
    lab.finish(&[
        ("is damaged: it is not what its name says", "the disk, of each that rots"),
        ("damaged on disk; replaced by the copy just written", "what is written once more"),
        ("sent corrupt bytes of content", "who read one"),
        ("it sent a corrupt piece", "the frontend there, whose program gets an error"),
    ]);
}

/// Two copies, one of which rots, and a reader on a third host that keeps none.
#[test]
fn a_rotten_copy_that_is_met_is_replaced_by_a_good_one() {
    let Some(mut lab) = Lab::new(3) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    for (at, lazy) in [(1, None), (2, Some("--lazy"))] {
        let token = lab.hosts[0].invite();
        let options: Vec<&str> = ["--join", &token, "--no-mdns"].into_iter().chain(lazy).collect();
        lab.hosts[at].start("d", &options);
    }
    lab.wait_for_peers(&[0, 1, 2], 2);
    let content = bytes(9 << 20);
    fs::write(lab.hosts[0].file("large"), &content).unwrap();
    wait_for("two copies", || lab.logs(), || lab.hosts.iter().all(|host| host.copies("large") == 2));
    // All of it, so that whoever asks this host for a piece meets it.
    let rotten = stored(&lab, 0, &content);
    fs::set_permissions(&rotten, fs::Permissions::from_mode(0o600)).unwrap();
    let before = fs::metadata(&rotten).unwrap().ino();
    File::options().write(true).open(&rotten).unwrap().write_all_at(&vec![1; content.len()], 0).unwrap();
    wait_for("the right bytes", || lab.logs(), || read(&lab, 2, "large", &content));
    let is_replaced = || fs::metadata(&rotten).is_ok_and(|meta| meta.ino() != before);
    wait_for("a good copy on the first host", || lab.logs(), is_replaced);
    assert!(fs::read(&rotten).unwrap() == content && !rotten.with_extension("damaged").exists());
    let (set_aside, sent) = ("it is set aside", "sent corrupt bytes of content");
    assert!(lab.hosts[0].logs().contains(set_aside) && lab.hosts[2].logs().contains(sent), "{}", lab.logs());
    lab.finish(&[(set_aside, "the disk with the rotten copy"), (sent, "who read it")]);
}
