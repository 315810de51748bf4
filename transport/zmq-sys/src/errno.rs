//! Error numbers that libzmq functions leave in `zmq_errno`: the system's, and libzmq's own above 156,384,712.

/// Error numbers with the system's value.
macro_rules! system {
    ($($name:ident)*) => { $(pub const $name: i32 = libc::$name;)* };
}

/// Error numbers of libzmq's own: the offset that `zmq.h` gives them above `ZMQ_HAUSNUMERO`.
macro_rules! own {
    ($($name:ident = $offset:expr;)*) => { $(pub const $name: i32 = 156_384_712 + $offset;)* };
}

system! {
    EACCES EADDRINUSE EAGAIN EBUSY ECONNREFUSED EFAULT EINTR EHOSTUNREACH EINPROGRESS EINVAL EMFILE EMSGSIZE
    ENAMETOOLONG ENODEV ENOENT ENOMEM ENOTCONN ENOTSOCK EPROTO EPROTONOSUPPORT ENOTSUP ENOBUFS ENETDOWN
    EADDRNOTAVAIL
}

own! {
    EFSM = 51; ENOCOMPATPROTO = 52; ETERM = 53; EMTHREAD = 54;
}

// Used where a platform lacks the system's number; never on Linux, but `zmq` matches them.
own! {
    ENOTSUP_ALT = 1; EPROTONOSUPPORT_ALT = 2; ENOBUFS_ALT = 3; ENETDOWN_ALT = 4; EADDRINUSE_ALT = 5;
    EADDRNOTAVAIL_ALT = 6; ECONNREFUSED_ALT = 7; EINPROGRESS_ALT = 8; ENOTSOCK_ALT = 9; EMSGSIZE_ALT = 10;
    EAFNOSUPPORT_ALT = 11; ENETUNREACH_ALT = 12; ECONNABORTED_ALT = 13; ECONNRESET_ALT = 14; ENOTCONN_ALT = 15;
    ETIMEDOUT_ALT = 16; EHOSTUNREACH_ALT = 17; ENETRESET_ALT = 18;
}
