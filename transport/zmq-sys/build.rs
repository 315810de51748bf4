//! Builds libzmq 4.3.5 from the source that `zeromq-src` carries: static, with CURVE through a static libsodium,
//! and with the C++ runtime linked statically, so that a binary using it needs nothing but glibc.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=platform_linux.h");
    let sodium_lib = required("DEP_SODIUM_LIB");
    let sodium_include = required("DEP_SODIUM_INCLUDE");

    // One optimised libzmq for every profile: a debug build of it makes tests several times slower and helps nobody.
    env::set_var("OPT_LEVEL", "2");
    env::set_var("DEBUG", "false");
    add_platform_header();
    // The C++ runtime is named below, as a static library; `cc` would ask for the shared one.
    env::set_var("CXXSTDLIB", "");

    let mut build = zeromq_src::Build::new();
    build.with_libsodium(Some(zeromq_src::LibLocation::new(sodium_lib, sodium_include)));
    build.build();

    link_static_libstdcxx();
}

/// zeromq-src leaves libzmq's `platform.hpp` empty, which turns off eventfd, close-on-exec and TCP keepalive. It passes
/// no flags of ours, but `cc` reads the environment; the flags somebody has set there are kept.
fn add_platform_header() {
    let target = required("TARGET");
    let underscored = target.replace('-', "_");
    let names = [
        format!("CXXFLAGS_{target}"),
        format!("CXXFLAGS_{underscored}"),
        "HOST_CXXFLAGS".to_string(),
        "TARGET_CXXFLAGS".to_string(),
        "CXXFLAGS".to_string(),
    ];
    let theirs = names.iter().find_map(|name| env::var(name).ok()).unwrap_or_default();
    let header = PathBuf::from(required("CARGO_MANIFEST_DIR")).join("platform_linux.h");
    // Quoted, because the checkout may lie in a folder with spaces.
    env::set_var("CC_SHELL_ESCAPED_FLAGS", "1");
    env::set_var(&names[0], format!("{theirs} -include '{}'", header.display()));
}

/// Asks the C++ compiler where its static runtime is and links that after libzmq.
fn link_static_libstdcxx() {
    println!("cargo:rerun-if-env-changed=CXX");
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_string());
    let output = Command::new(&compiler)
        .arg("-print-file-name=libstdc++.a")
        .output()
        .unwrap_or_else(|e| panic!("run {compiler} -print-file-name=libstdc++.a: {e}"));
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    assert!(
        path.is_absolute(),
        "{compiler} has no libstdc++.a; install the C++ compiler's static runtime (Debian: g++, RHEL: libstdc++-static)"
    );
    let folder = path.parent().expect("an absolute path to a file has a parent");
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!("cargo:rustc-link-lib=static:-bundle=stdc++");
}

fn required(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set; this build script runs under cargo only"))
}
