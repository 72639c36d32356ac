"""Passes: one file, one class, one sentence that says what holds before and after."""

PASSES = {
    "attach-mimicking": "attach_mimicking:AttachMimicking",
    "binarize": "binarize:Binarize",
    "calibrate-affine": "calibrate_affine:CalibrateAffine",
    "calibrate-mask": "calibrate_mask:CalibrateMask",
    "canonicalize": "canonicalize:Canonicalize",
    "cast-half": "cast_half:CastHalf",
    "evolve-encoder": "evolve_encoder:EvolveEncoder",
    "expand-modules": "expand_modules:ExpandModules",
    "fold-batch-norm": "fold_batch_norm:FoldBatchNorm",
    "insert-elastic-shortcuts": "insert_elastic_shortcuts:InsertElasticShortcuts",
    "lower-binary": "lower_binary:LowerBinary",
    "lower-functions": "lower_functions:LowerFunctions",
    "lower-masks": "lower_masks:LowerMasks",
    "lower-quantized": "lower_quantized:LowerQuantized",
    "partition-blocks": "partition_blocks:PartitionBlocks",
    "quantize": "quantize:Quantize",
    "reconstruct-blocks": "reconstruct_blocks:ReconstructBlocks",
    "set-resolution": "set_resolution:SetResolution",
    "shift-activations": "shift_activations:ShiftActivations",
    "sparsify-decoder": "sparsify_decoder:SparsifyDecoder",
}
