//! Links the unwinder statically, so that `pf` needs no shared library but glibc's own on a compute node.
//!
//! Rust's standard library asks for `libgcc_s`; a linker script of this name, found before the compiler's, gives it the static `libgcc_eh`.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").expect("cargo says where to write");
    std::fs::write(Path::new(&out).join("libgcc_s.so"), "INPUT(-lgcc_eh -lgcc)\n")
        .expect("the folder is ours");
    println!("cargo:rustc-link-search=native={out}");
}
