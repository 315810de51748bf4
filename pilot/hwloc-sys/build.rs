//! Links the system's `libhwloc.a` (2.5 or newer; Debian: libhwloc-dev), so that a binary with it needs no library but glibc.
//!
//! The archive is copied with two changes of names. Its `dlopen` family becomes ours, which opens nothing: hwloc would load
//! its plugins, built against another copy of hwloc and against CUDA or X11, into the process. Its `udev_*`
//! (names of disks, which nobody asks for) become ours too, so that libudev is not needed.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// What hwloc calls that a static binary must not bring along. `src/absent.rs` defines each with the prefix `pf_hwloc_`.
const ABSENT: [&str; 9] = [
    "dlopen",
    "dlclose",
    "dlsym",
    "dlerror",
    "udev_new",
    "udev_unref",
    "udev_device_new_from_subsystem_sysname",
    "udev_device_unref",
    "udev_device_get_property_value",
];

fn main() {
    for variable in ["PF_HWLOC_LIB_DIR", "CC", "OBJCOPY"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    let archive = find_archive();
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let copy = out.join("libpf_hwloc.a");
    let tool = env::var("OBJCOPY").unwrap_or_else(|_| "objcopy".to_string());
    let mut command = Command::new(&tool);
    for name in ABSENT {
        command.arg("--redefine-sym").arg(format!("{name}=pf_hwloc_{name}"));
    }
    let status = command.arg(&archive).arg(&copy).status();
    assert!(
        status.as_ref().is_ok_and(|status| status.success()),
        "{tool} of {} failed ({status:?}); is binutils installed?",
        archive.display()
    );
    println!("cargo:rerun-if-changed={}", archive.display());
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=pf_hwloc");
    println!("cargo:rustc-link-lib=m");
}

/// The archive: where somebody says, else where the C compiler looks.
fn find_archive() -> PathBuf {
    if let Ok(folder) = env::var("PF_HWLOC_LIB_DIR") {
        return PathBuf::from(folder).join("libhwloc.a");
    }
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_string());
    let output = Command::new(&compiler)
        .arg("-print-file-name=libhwloc.a")
        .output()
        .unwrap_or_else(|e| panic!("run {compiler} -print-file-name=libhwloc.a: {e}"));
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    assert!(
        path.is_absolute(),
        "no libhwloc.a found; install hwloc's static library (Debian: apt-get install libhwloc-dev), \
         or name its folder in PF_HWLOC_LIB_DIR"
    );
    path
}
