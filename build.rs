//! Link options of the binary.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |key: &str, value: &str| std::env::var(key).is_ok_and(|v| v == value);
    let is_linux = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    // The address tables of a binary this large are 8 MB that every start reads and keeps; packed they are 80 kB. The
    // loader understands the packed form from glibc 2.36 on.
    if is_linux && is("CARGO_CFG_TARGET_ARCH", "x86_64") && is_native() && glibc().is_some_and(|v| v >= (2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Built where it runs; for another machine the oldest loader counts.
fn is_native() -> bool {
    std::env::var("HOST").ok() == std::env::var("TARGET").ok()
}

fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
