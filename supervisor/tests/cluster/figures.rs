//! What the network costs, as figures: not a test, so it runs only when asked for, and asserts nothing but right bytes.
//! `cargo build --release && DELUGEFS_BIN=$PWD/target/release cargo test -p delugefs-supervisor --test main figures -- --ignored
//! --nocapture`

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::stories::{bytes, joined};
use super::wait_for;

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
    let Some(lab) = joined(2) else { return };
    let (here, there) = (&lab.hosts[0], &lab.hosts[1]);
    // One copy: what is read there comes from here.
    fs::create_dir(here.file("one")).unwrap();
    assert_eq!(here.says(&["copies", here.file("one").to_str().unwrap(), "1"]).0, 0);
    wait(&lab, "the folder", || there.file("one").exists());

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
    wait(&lab, "the last file", || there.file(&format!("many/{}", FILES - 1)).exists());
    for number in 0..FILES {
        let path = there.file(&format!("many/{number}"));
        assert!(fs::read(&path).unwrap() == content, "{}", path.display());
    }
    let rate = FILES as f64 / begin.elapsed().as_secs_f64();
    println!("{FILES} files of 4 KiB written here ({written:?}) and read there: {rate:.0} files/s");

    const SIZE: usize = 512 << 20;
    let content = bytes(SIZE);
    // Of another content: equal ones are stored once, and would be there already.
    let other: Vec<u8> = content.iter().map(|byte| !byte).collect();
    for (name, content) in [("one/sequential", &content), ("one/random", &other)] {
        fs::write(here.file(name), content).unwrap();
        wait(&lab, name, || fs::metadata(there.file(name)).is_ok_and(|meta| meta.len() == SIZE as u64));
    }
    let begin = Instant::now();
    let mut file = File::open(there.file("one/sequential")).unwrap();
    let mut first = [0];
    file.read_exact(&mut first).unwrap();
    println!("first byte of a remote file of 512 MiB: {:?}", begin.elapsed());
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
    println!("all of it, in order: {:.0} MB/s", SIZE as f64 / 1e6 / begin.elapsed().as_secs_f64());

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
