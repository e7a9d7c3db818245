//! The moments at which a rule may act: QAPI's BlkdebugEvent.

macro_rules! events {
    ($($event:ident $name:literal $doc:literal,)*) => {
        /// A moment in the life of a driver, told to the node below it by [`crate::Io::event`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum BlkdebugEvent {
            $(#[doc = $doc] $event,)*
        }

        impl BlkdebugEvent {
            /// Every one, with its name in options.
            pub const EACH: &'static [(BlkdebugEvent, &'static str)] =
                &[$((BlkdebugEvent::$event, $name),)*];
        }
    };
}

events! {
    L1Update "l1_update" "An L1 entry is written.",
    L1GrowAllocTable "l1_grow_alloc_table" "Room for a larger L1 table is allocated.",
    L1GrowWriteTable "l1_grow_write_table" "The larger L1 table is written.",
    L1GrowActivateTable "l1_grow_activate_table" "The header is pointed at it.",
    L2Load "l2_load" "An L2 slice is read.",
    L2Update "l2_update" "L2 entries are written.",
    L2UpdateCompressed "l2_update_compressed" "Those of compressed clusters are.",
    L2AllocCowRead "l2_alloc_cow_read" "An L2 table is copied: it is read.",
    L2AllocWrite "l2_alloc_write" "A new L2 table is written.",
    ReadAio "read_aio" "Guest data is read.",
    ReadBackingAio "read_backing_aio" "Guest data is read from the backing file.",
    ReadCompressed "read_compressed" "A compressed cluster is read.",
    WriteAio "write_aio" "Guest data is written.",
    WriteCompressed "write_compressed" "A compressed cluster is written.",
    VmstateLoad "vmstate_load" "Machine state is read.",
    VmstateSave "vmstate_save" "Machine state is written.",
    CowRead "cow_read" "What a partial write leaves of a cluster is read.",
    CowWrite "cow_write" "It is written.",
    ReftableLoad "reftable_load" "The refcount table is read.",
    ReftableGrow "reftable_grow" "It gets larger.",
    ReftableUpdate "reftable_update" "Entries of it are written.",
    RefblockLoad "refblock_load" "A refcount block is read.",
    RefblockUpdate "refblock_update" "It is written.",
    RefblockUpdatePart "refblock_update_part" "Part of it is.",
    RefblockAlloc "refblock_alloc" "A refcount block is allocated.",
    RefblockAllocHookup "refblock_alloc_hookup" "The table is pointed at it.",
    RefblockAllocWrite "refblock_alloc_write" "It is written for the first time.",
    RefblockAllocWriteBlocks "refblock_alloc_write_blocks" "Several are, with a new table.",
    RefblockAllocWriteTable "refblock_alloc_write_table" "The new table is.",
    RefblockAllocSwitchTable "refblock_alloc_switch_table" "The header is pointed at it.",
    ClusterAlloc "cluster_alloc" "Clusters are allocated.",
    ClusterAllocBytes "cluster_alloc_bytes" "Part of a cluster is.",
    ClusterFree "cluster_free" "Clusters are freed.",
    FlushToOs "flush_to_os" "Caches are written out.",
    FlushToDisk "flush_to_disk" "A flush goes down.",
    PwritevRmwHead "pwritev_rmw_head" "The first block of an unaligned write is read.",
    PwritevRmwAfterHead "pwritev_rmw_after_head" "It has been.",
    PwritevRmwTail "pwritev_rmw_tail" "The last block is read.",
    PwritevRmwAfterTail "pwritev_rmw_after_tail" "It has been.",
    Pwritev "pwritev" "A write begins.",
    PwritevZero "pwritev_zero" "A write of zeroes begins.",
    PwritevDone "pwritev_done" "A write is done.",
    EmptyImagePrepare "empty_image_prepare" "An image is emptied.",
    L1ShrinkWriteTable "l1_shrink_write_table" "A shorter L1 table is written.",
    L1ShrinkFreeL2Clusters "l1_shrink_free_l2_clusters" "What it no longer needs is freed.",
    CorWrite "cor_write" "What was read is copied.",
    ClusterAllocSpace "cluster_alloc_space" "New clusters are zeroed.",
    None "none" "Once, when the node is opened.",
}

impl BlkdebugEvent {
    /// The event of that name.
    pub fn parse(name: &str) -> Option<BlkdebugEvent> {
        let found = BlkdebugEvent::EACH.iter().find(|(_, known)| *known == name);
        found.map(|(event, _)| *event)
    }
}
