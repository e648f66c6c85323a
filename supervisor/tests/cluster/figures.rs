//! What the network costs, as figures: not a test, so it runs only when asked for, and asserts nothing but right bytes.
//! `cargo build --release && DELUGEFS_BIN=$PWD/target/release cargo test --workspace --test main -- --ignored --nocapture figures`

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::stories::bytes;
use super::wait_for;
use crate::e2e::setting;

/// The value below which this part of the sorted values lies.
fn quantile(values: &mut [Duration], part: f64) -> Duration {
    values.sort();
    values[((values.len() - 1) as f64 * part) as usize]
}

fn wait(lab: &Lab, what: &str, condition: impl FnMut() -> bool) {
    wait_for(what, || lab.logs(), condition);
}

#[test]
#[ignore = "figures, not a test"]
fn figures() {
    let Some(mut lab) = Lab::new(3) else { return };
    lab.hosts[0].start("d", &["--create", "--no-mdns"]);
    let token = lab.hosts[0].invite();
    lab.hosts[1].start("d", &["--join", &token, "--no-mdns"]);
    lab.wait_for_peers(&[0, 1], 1);
    between_two(&lab);
    of_many_names(&mut lab);
    of_many_contents(&mut lab);
    lab.finish(&[]);
}

/// What a host does that is left alone: CPU in per cent of a core, and memory in MiB, of all its processes.
fn idle(lab: &Lab, seconds: u64) -> (f64, u64) {
    let (before, begin) = (lab.hosts[0].usage().0, Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let (after, memory) = lab.hosts[0].usage();
    ((after - before) / begin.elapsed().as_secs_f64() * 100.0, memory)
}

fn between_two(lab: &Lab) {
    let (here, there) = (&lab.hosts[0], &lab.hosts[1]);
    // One copy: what is read there comes from here.
    fs::create_dir(here.file("one")).unwrap();
    assert_eq!(here.says(&["copies", here.file("one").to_str().unwrap(), "1"]).0, 0);
    wait(lab, "the folder", || there.file("one").exists());

    let mut seen: Vec<Duration> = Vec::new();
    for number in 0..200 {
        let (name, content) = (format!("one/small{number}"), format!("content {number}"));
        let path = there.file(&name);
        fs::write(here.file(&name), &content).unwrap();
        let closed = Instant::now();
        while fs::read_to_string(&path).is_ok_and(|found| found == content) as u8 == 0 {
            assert!(closed.elapsed() < Duration::from_secs(30), "{name} does not come\n{}", lab.logs());
            std::thread::sleep(Duration::from_millis(1));
        }
        seen.push(closed.elapsed());
    }
    println!(
        "close() here to right content there: p50 {:?}, p99 {:?}",
        quantile(&mut seen, 0.5),
        quantile(&mut seen, 0.99)
    );

    const FILES: usize = 10_000;
    let content = bytes(4096);
    fs::create_dir(here.file("many")).unwrap();
    let begin = Instant::now();
    for number in 0..FILES {
        fs::write(here.file(&format!("many/{number}")), &content).unwrap();
    }
    let written = begin.elapsed();
    wait(lab, "the last file", || there.file(&format!("many/{}", FILES - 1)).exists());
    for number in 0..FILES {
        let path = there.file(&format!("many/{number}"));
        assert!(fs::read(&path).unwrap() == content, "{}", path.display());
    }
    let rate = FILES as f64 / begin.elapsed().as_secs_f64();
    println!("{FILES} files of 4 KiB written here ({written:?}) and read there: {rate:.0} files/s");

    const SMALL: usize = 200;
    let mut content = bytes(64 << 10);
    for number in 0..SMALL {
        content[0] = number as u8;
        fs::write(here.file(&format!("one/{number}")), &content).unwrap();
    }
    let size = |number: usize| fs::metadata(there.file(&format!("one/{number}"))).map_or(0, |meta| meta.len());
    wait(lab, "the small ones", || (0..SMALL).all(|number| size(number) == content.len() as u64));
    let mut times: Vec<Duration> = Vec::new();
    for number in 0..SMALL {
        content[0] = number as u8;
        let begin = Instant::now();
        let found = fs::read(there.file(&format!("one/{number}"))).unwrap();
        times.push(begin.elapsed());
        assert!(found == content, "wrong bytes");
    }
    println!(
        "a remote file of 64 KiB, all of it: p50 {:?}, p99 {:?}",
        quantile(&mut times, 0.5),
        quantile(&mut times, 0.99)
    );

    const SIZE: usize = 1 << 30;
    let content = bytes(SIZE);
    // Of another content: equal ones are stored once, and would be there already.
    let other: Vec<u8> = content.iter().map(|byte| !byte).collect();
    for (name, content) in [("one/sequential", &content), ("one/random", &other)] {
        fs::write(here.file(name), content).unwrap();
        wait(lab, name, || fs::metadata(there.file(name)).is_ok_and(|meta| meta.len() == SIZE as u64));
    }
    let cpu = || here.usage().0 + there.usage().0;
    let (begin, before) = (Instant::now(), cpu());
    let mut file = File::open(there.file("one/sequential")).unwrap();
    let mut first = [0];
    file.read_exact(&mut first).unwrap();
    println!("first byte of a remote file of 1 GiB: {:?}", begin.elapsed());
    let mut block = vec![0; 1 << 20];
    let (mut offset, mut right) = (1, first[0] == content[0]);
    loop {
        let length = file.read(&mut block).unwrap();
        if length == 0 {
            break;
        }
        right &= block[..length] == content[offset..offset + length];
        offset += length;
    }
    assert!(right && offset == SIZE, "wrong bytes");
    let rate = SIZE as f64 / 1e6 / begin.elapsed().as_secs_f64();
    // The rest of the work: hashing it as a whole, and the holding.
    wait(lab, "the copy", || there.copies("one/sequential") == 2);
    println!("all of it, in order: {rate:.0} MB/s, {:.1} CPU seconds of both ends together", cpu() - before);
    by_libtorrent(lab, &here.path("sequential"), &content);

    let file = File::open(there.file("one/random")).unwrap();
    let mut times: Vec<Duration> = Vec::new();
    let mut block = vec![0; 64 << 10];
    let mut bits = 1_u64;
    for _ in 0..40 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (bits >> 33) as usize % (SIZE / block.len()) * block.len();
        let begin = Instant::now();
        file.read_exact_at(&mut block, offset as u64).unwrap();
        times.push(begin.elapsed());
        assert!(block == other[offset..offset + block.len()], "wrong bytes");
    }
    println!("random 64 KiB of it: p50 {:?}, p99 {:?}", quantile(&mut times, 0.5), quantile(&mut times, 0.99));
}

/// The same content by libtorrent, between the same two networks.
fn by_libtorrent(lab: &Lab, file: &Path, content: &[u8]) {
    const PYTHON: &str = "/usr/bin/python3";
    let has = Command::new(PYTHON).args(["-c", "import libtorrent"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        return println!("the same by libtorrent: not measured, there is no python3-libtorrent");
    }
    let (here, there) = (&lab.hosts[0], &lab.hosts[1]);
    fs::write(file, content).unwrap();
    let script = here.path("by_libtorrent.py");
    fs::write(&script, include_str!("by_libtorrent.py")).unwrap();
    let mut seed = here.command(PYTHON);
    seed.arg(&script).arg("seed").arg(file).args(["10.77.0.1", "6881"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut seed = seed.spawn().unwrap();
    let mut said = BufReader::new(seed.stdout.take().unwrap()).lines().map(Result::unwrap);
    let torrent = said.next().unwrap();
    let folder = there.path("fetched");
    fs::create_dir(&folder).unwrap();
    let mut fetch = there.command(PYTHON);
    fetch.arg(&script).arg("fetch").arg(torrent).arg(&folder).args(["10.77.0.2", "6881", "10.77.0.1", "6881"]);
    let fetched = fetch.output().unwrap();
    drop(seed.stdin.take());
    let seeded = said.next().unwrap_or_default();
    seed.wait().unwrap();
    let numbers = format!("{}{seeded}", String::from_utf8_lossy(&fetched.stdout));
    let numbers: Vec<f64> = numbers.lines().filter_map(|line| line.parse().ok()).collect();
    let [seconds, fetching, seeding] = numbers[..] else { panic!("{fetched:?}") };
    assert!(fs::read(folder.join(file.file_name().unwrap())).unwrap() == content, "wrong bytes");
    println!(
        "the same by libtorrent, without FUSE and TLS: {:.0} MB/s, {:.1} CPU seconds of both ends together",
        content.len() as f64 / 1e6 / seconds,
        fetching + seeding
    );
}

/// `DELUGEFS_FIGURES_SCALE` in per cent of 100,000, and whether that is all.
fn many() -> (usize, bool) {
    let scale = setting("DELUGEFS_FIGURES_SCALE").unwrap_or(100);
    (1000 * usize::try_from(scale).unwrap(), scale >= 100)
}

/// A catalog of many names: what it costs to do nothing, and how long a new disk takes to have it.
fn of_many_names(lab: &mut Lab) {
    let (names, _) = many();
    let begin = Instant::now();
    for dir in 0..100 {
        fs::create_dir(lab.hosts[0].file(&format!("dir{dir}"))).unwrap();
        for number in 0..names / 100 {
            File::create(lab.hosts[0].file(&format!("dir{dir}/{number}"))).unwrap();
        }
    }
    println!("{names} empty files made: {:.0} files/s", names as f64 / begin.elapsed().as_secs_f64());
    lab.wait_for_one_catalog(&[0, 1]);
    let (busy, memory) = idle(lab, 10);
    println!(
        "doing nothing with {names} names in memory: {busy:.1} % of a core, {memory} MiB, all processes of a host"
    );
    let token = lab.hosts[0].invite();
    let begin = Instant::now();
    lab.hosts[2].start("d", &["--join", &token, "--no-mdns"]);
    let last = lab.hosts[2].file(&format!("dir99/{}", names / 100 - 1));
    wait(lab, "the last name", || last.exists());
    println!("an empty disk joined, until the last of {names} names is there: {:?}", begin.elapsed());
}

/// What it costs to hold many contents.
fn of_many_contents(lab: &mut Lab) {
    let (contents, is_all) = many();
    let mut content = bytes(5000);
    let begin = Instant::now();
    for dir in 0..100 {
        fs::create_dir(lab.hosts[0].file(&format!("held{dir}"))).unwrap();
        for number in 0..contents / 100 {
            content[..16].copy_from_slice(&((dir * contents + number) as u128).to_le_bytes());
            fs::write(lab.hosts[0].file(&format!("held{dir}/{number}")), &content).unwrap();
        }
    }
    let held = || lab.hosts[0].json(&["status"])["disks"][0]["worker"]["contents"].as_u64().unwrap_or(0);
    let written = begin.elapsed();
    wait(lab, "all to be sealed", || held() >= contents as u64);
    let policy = || lab.hosts[0].json(&["status"])["replication"].clone();
    let are_safe = |policy: &serde_json::Value| {
        policy["contents"].as_u64() >= Some(contents as u64) && policy["short"] == 0 && policy["waiting"] == 0
    };
    wait(lab, "the second copies", || are_safe(&policy()));
    println!(
        "{contents} contents of 5,000 bytes written ({written:?}) and a copy of each on another host: {:?}",
        begin.elapsed()
    );
    lab.hosts[0].stop();
    lab.hosts[0].start("d", &["--no-mdns"]);
    lab.wait_for_peers(&[0], 2);
    wait(lab, "the policy to know them", || are_safe(&lab.hosts[0].json(&["status"])["replication"]));
    // With the looks of a minute.
    let (busy, memory) = idle(lab, if is_all { 60 } else { 10 });
    println!("doing nothing with {contents} contents: {busy:.1} % of a core, {memory} MiB, all processes of a host");
}
