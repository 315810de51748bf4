//! A blocking HTTP/1.1 client for tests, small enough to send garbage with.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Nothing in a test takes this long; a hang becomes an error.
const TIMEOUT: Duration = Duration::from_secs(60);

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub struct Client {
    io: BufReader<Box<dyn Stream>>,
    pub token: Option<String>,
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {} {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    pub fn ok(self) -> serde_json::Value {
        assert!((200..300).contains(&self.status), "{} {}", self.status, String::from_utf8_lossy(&self.body));
        self.json()
    }

    pub fn code(&self) -> (u16, String) {
        (self.status, self.json()["code"].as_str().unwrap_or_default().to_owned())
    }
}

impl Client {
    pub fn unix(path: &Path) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Client::over(Box::new(stream))
    }

    pub fn over(stream: Box<dyn Stream>) -> Client {
        Client { io: BufReader::new(stream), token: None }
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.io.get_mut().write_all(bytes)?;
        self.io.get_mut().flush()
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: broker\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|h| h.0.eq_ignore_ascii_case("x-pilotfish-api")) {
            head.push_str("X-Pilotfish-Api: 1\r\n");
        }
        if let Some(token) = &self.token {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        // The broker may answer and close before it has read a body that it does not want.
        let _ = self.send_raw(&bytes);
    }

    /// Status and head; the body is still to be read.
    pub fn head(&mut self) -> std::io::Result<(u16, String)> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.io.read_line(&mut head)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        Ok((status, head))
    }

    /// One chunk of a chunked body; None at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.io.read_line(&mut line).unwrap();
        let len = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut data = vec![0; len + 2];
        self.io.read_exact(&mut data).unwrap();
        data.truncate(len);
        (len > 0).then_some(data)
    }

    pub fn answer(&mut self) -> std::io::Result<Answer> {
        let (status, head) = self.head()?;
        let lower = head.to_lowercase();
        let mut body = Vec::new();
        if lower.contains("transfer-encoding: chunked") {
            while let Some(piece) = self.chunk() {
                body.extend_from_slice(&piece);
            }
        } else if let Some(at) = lower.find("content-length: ") {
            let len: usize = lower[at + 16..].lines().next().unwrap_or("0").trim().parse().unwrap_or(0);
            body.resize(len, 0);
            self.io.read_exact(&mut body)?;
        }
        Ok(Answer { status, head, body })
    }

    pub fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.call_with(method, path, &[], body)
    }

    pub fn call_with(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send(method, path, headers, body);
        self.answer().unwrap()
    }
}
