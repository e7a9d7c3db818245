//! SHA-256 of files.

use super::error::BackupError;
use blockgraph::digest::Sha256;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// SHA-256 of a file, in hexadecimal. Tells `go_on` how many bytes it went on by.
pub(super) fn of_file(
    path: &Path,
    go_on: &mut dyn FnMut(u64) -> Result<(), BackupError>,
) -> Result<String, BackupError> {
    let mut digest = Sha256::new().ok_or_else(|| BackupError::Image("no SHA-256".to_owned()))?;
    let mut file = File::open(path).map_err(BackupError::file(path, "cannot be opened"))?;
    let mut block = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut block);
        let len = read.map_err(BackupError::file(path, "cannot be read"))?;
        if len == 0 {
            break;
        }
        digest.update(&block[..len]);
        go_on(len as u64)?;
    }
    Ok(digest.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_known_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_file(file.path(), &mut |_| Ok(())).unwrap(), known);
    }
}
