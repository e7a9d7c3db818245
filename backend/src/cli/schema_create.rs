//! The options of new images: QMP's `blockdev-create`.

use super::error::Refusal;
use super::options::{ChildRef, CreateFile, CreateQcow2, ImageToCreate, NodeCommon};
use super::schema_node::child_blockdev;
use super::visit::{NameOrObject, Object};
use blockgraph::driver::file::CopyOnWrite;
use blockgraph::driver::qcow2::create;
use blockgraph::driver::qcow2::format::header::{Compression, Version};
use blockgraph::request::Prealloc;

const PREALLOC: &[(&str, Prealloc)] = &[
    ("off", Prealloc::Off),
    ("metadata", Prealloc::Metadata),
    ("falloc", Prealloc::Falloc),
    ("full", Prealloc::Full),
];

const VERSIONS: &[(&str, Version)] = &[("v2", Version::V2), ("v3", Version::V3)];

const COMPRESSION: &[(&str, Compression)] =
    &[("zlib", Compression::Zlib), ("zstd", Compression::Zstd)];

/// Reads `BlockdevCreateOptions`, which have been held against their type.
///
/// # Errors
/// A driver that makes no images.
pub fn image_to_create(mut o: Object) -> Result<ImageToCreate, Refusal> {
    let driver = o.required_string("driver")?;
    let image = match driver.as_str() {
        "file" => ImageToCreate::File(create_file(&mut o)?),
        "qcow2" => ImageToCreate::Qcow2(Box::new(create_qcow2(&mut o)?)),
        _ => return Err(Refusal::new("Driver does not support blockdev-create")),
    };
    o.finish()?;
    Ok(image)
}

fn create_file(o: &mut Object) -> Result<CreateFile, Refusal> {
    let filename = o.required_string("filename")?.into();
    let size_bytes = size(o)?;
    let preallocation = o.word("preallocation", PREALLOC)?.unwrap_or(Prealloc::Off);
    let copy_on_write = match o.boolean("nocow")? {
        Some(true) => CopyOnWrite::Off,
        _ => CopyOnWrite::Usual,
    };
    Ok(CreateFile {
        filename,
        size_bytes,
        preallocation,
        copy_on_write,
    })
}

fn create_qcow2(o: &mut Object) -> Result<CreateQcow2, Refusal> {
    let file = child(o.name_or_object("file", "BlockdevRef")?)?;
    let data_file = o.name_or_object_if_any("data-file", "BlockdevRef")?;
    let data_file = data_file.map(child).transpose()?;
    let data_file_raw = o.boolean("data-file-raw")?.unwrap_or(false);
    let extended_l2 = o.boolean("extended-l2")?.unwrap_or(false);
    let usual = create::Options::new(size(o)?);
    let version = o.word("version", VERSIONS)?.unwrap_or(usual.version);
    let backing_file = o.string("backing-file")?;
    let backing_format = o.string("backing-fmt")?;
    let cluster_bytes = o.size("cluster-size")?.unwrap_or(usual.cluster_bytes);
    let preallocation = o.word("preallocation", PREALLOC)?;
    let lazy_refcounts = o.boolean("lazy-refcounts")?.unwrap_or(false);
    // Negative ones wrap in QEMU too, and are no power of two then.
    let refcount_bits = o.int64("refcount-bits")?.map(|bits| bits as u64);
    let compression = o.word("compression-type", COMPRESSION)?;
    let image = create::Options {
        version,
        cluster_bytes,
        refcount_bits: refcount_bits.unwrap_or(usual.refcount_bits),
        preallocation: preallocation.unwrap_or(usual.preallocation),
        backing_file,
        backing_format,
        data_file_raw,
        extended_l2,
        lazy_refcounts,
        compression: compression.unwrap_or(usual.compression),
        ..usual
    };
    Ok(CreateQcow2 {
        file,
        data_file,
        image,
    })
}

fn size(o: &mut Object) -> Result<u64, Refusal> {
    let size = o.size("size")?;
    size.ok_or_else(|| Refusal::missing(o.full_name("size")))
}

/// A node to make an image in: as any that is asked for by itself.
fn child(member: NameOrObject) -> Result<ChildRef, Refusal> {
    Ok(match member {
        NameOrObject::Name(name) => ChildRef::Node(name),
        NameOrObject::Object(o) => {
            ChildRef::Inline(Box::new(child_blockdev(o, &NodeCommon::ROOT)?))
        }
    })
}
