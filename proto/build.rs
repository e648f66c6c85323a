//! Compiles the `.proto` files with protox, so that no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 4] = ["local.proto", "peer.proto", "worker.proto", "control.proto"];
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure()
        .bytes(".delugefs.local.v1")
        .bytes(".delugefs.peer.v1.ReadContentReply.data")
        .compile_fds(descriptors)?;
    Ok(())
}
