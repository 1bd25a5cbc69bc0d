//! What the running kernel has, found by looking or by trying.

use std::path::Path;

use libbpf_rs::libbpf_sys;

/// A fact about the kernel, to save a load that would be in vain: either way of making a kprobe is there.
pub fn kernel_has_kprobes() -> bool {
    Path::new("/sys/bus/event_source/devices/kprobe/type").exists()
        || ["/sys/kernel/tracing/kprobe_events", "/sys/kernel/debug/tracing/kprobe_events"]
            .iter()
            .any(|path| Path::new(path).exists())
}

/// Whether the kernel makes ring buffers, by trial: it does not know that kind of map. Where it has refused for another
/// reason, as for want of privilege, it will say so again.
pub fn kernel_has_ring_buffer() -> bool {
    const SIZE: u32 = 1 << 16;

    // SAFETY: the kind of a map, its sizes, and neither name nor options.
    let fd = unsafe {
        libbpf_sys::bpf_map_create(libbpf_sys::BPF_MAP_TYPE_RINGBUF, std::ptr::null(), 0, 0, SIZE, std::ptr::null())
    };
    if fd >= 0 {
        // SAFETY: the descriptor is this function's own.
        unsafe { libc::close(fd) };
    }
    fd != -libc::EINVAL
}
