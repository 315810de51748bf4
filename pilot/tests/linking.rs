//! A binary that reads topologies needs no library but glibc: hwloc is linked statically, without udev and plugins.

use std::process::Command;

#[test]
fn a_binary_with_hwloc_needs_no_library_but_glibc() {
    pf_pilot::topology::read_local().expect("hwloc is really linked");
    let own = std::env::current_exe().expect("path of this test binary");
    let output =
        Command::new("readelf").arg("-d").arg(&own).output().expect("readelf, of binutils, is there");
    let text = String::from_utf8_lossy(&output.stdout);
    let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
    let foreign: Vec<&str> = needed
        .filter_map(|line| line.split(['[', ']']).nth(1))
        .filter(|name| {
            !["libc.so", "libm.so", "ld-linux", "libgcc_s.so"].iter().any(|glibc| name.starts_with(glibc))
        })
        .collect();
    assert!(text.contains("libc.so.6") && foreign.is_empty(), "shared libraries beside glibc: {foreign:?}");
}
