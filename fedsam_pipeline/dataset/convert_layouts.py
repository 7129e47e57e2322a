"""The layouts that the converters read, in a few lines each: for ``-h`` and for the errors. Nothing heavy is imported here."""

MSD = """\
TaskXX_Name/dataset.json    modality, labels, training, test
TaskXX_Name/imagesTr/CASE.nii.gz, labelsTr/CASE.nii.gz, imagesTs/CASE.nii.gz"""

PROSTATE = """\
SITE/CaseNN.nii.gz
SITE/CaseNN_segmentation.nii.gz    or _Segmentation
SITE: RUNMC (or ISBI), BMC (or ISBI_1.5), HCRUDB (or I2CVB), UCL, BIDMC, HK"""

KITS19 = """\
data/case_NNNNN/imaging.nii.gz
data/case_NNNNN/segmentation.nii.gz    case_00000 to case_00209"""

KITS19_TABLE = "columns case, site_id (FLamby's anony_sites.csv) or case_ids, site_ids, train_test_split (its thresholded_sites.csv)"

KITS19_MIN_CASES = 10
"""FLamby keeps hospitals with at least this many labelled cases (its parsing_and_adding_metadata.py)"""

IXI = """\
image/IXI002-Guys-0828_image.nii.gz, label/IXI002-Guys-0828_label.nii.gz
or IXI002-Guys-0828/T1/IXI002-Guys-0828_image.nii.gz, IXI002-Guys-0828/label/IXI002-Guys-0828_label.nii.gz
hospitals: Guys, HH, IOP"""

IXI_TABLE = "columns Patient ID, Split (FLamby's metadata_tiny.csv)"

FETS = """\
partitioning_1.csv    columns Partition_ID, Subject_ID
FeTS2022_NNNNN/FeTS2022_NNNNN_{t1,t1ce,t2,flair,seg}.nii.gz"""
