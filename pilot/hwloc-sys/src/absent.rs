//! What hwloc finds in place of the libraries that a static binary does not bring: nothing, said politely.
//!
//! Named by the build script, which renames hwloc's calls to these. Signatures are those of `dlfcn.h` and `libudev.h`.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

#[unsafe(no_mangle)]
extern "C" fn pf_hwloc_dlopen(_path: *const c_char, _flags: c_int) -> *mut c_void {
    null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn pf_hwloc_dlclose(_library: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn pf_hwloc_dlsym(_library: *mut c_void, _name: *const c_char) -> *mut c_void {
    null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn pf_hwloc_dlerror() -> *const c_char {
    c"plugins are not loaded into this program".as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn pf_hwloc_udev_new() -> *mut c_void {
    null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn pf_hwloc_udev_unref(_udev: *mut c_void) -> *mut c_void {
    null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn pf_hwloc_udev_device_new_from_subsystem_sysname(
    _udev: *mut c_void,
    _subsystem: *const c_char,
    _name: *const c_char,
) -> *mut c_void {
    null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn pf_hwloc_udev_device_unref(_device: *mut c_void) -> *mut c_void {
    null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn pf_hwloc_udev_device_get_property_value(
    _device: *mut c_void,
    _key: *const c_char,
) -> *const c_char {
    std::ptr::null()
}
