//! The programs themselves, with stand-ins for worker and frontend (`examples/`). One binary for all of it.

#![allow(clippy::unwrap_used)] // tests, also outside of #[test] functions

mod adoption;
mod beside;
mod cluster;
mod commands;
mod discovery;
mod e2e;
mod faults;
mod help;
mod lab;
mod run;
mod supervise;

/// A file that is not in the list above is a test that never runs.
#[test]
fn every_file_is_a_module() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let main = std::fs::read_to_string(here.join("main.rs")).unwrap();
    for entry in std::fs::read_dir(here).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(module) = name.strip_suffix(".rs").filter(|module| *module != "main") {
            assert!(main.contains(&format!("\nmod {module};")), "{name} is not part of tests/main.rs");
        }
    }
}
