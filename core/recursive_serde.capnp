@0xb1f4a6c2d98e5073;

# PySyft's `RecursiveSerde` with its texts as data, which are the same bytes: see pysyft_patches.py.
struct RecursiveSerde {
    fieldsName @0 :List(Data);
    fieldsData @1 :List(List(Data));
    nonrecursiveBlob @2 :List(Data);
    canonicalName @3 :Data;
    version @4 :Int32;
}
