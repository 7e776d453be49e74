#!/usr/bin/env bash
# Downloads data sets and weights, verifies them, and unpacks them into data/, checkpoints/ and MXNet's model folder.
# Interrupted downloads are resumed. A file that is already at its download path is verified, used and kept.
#
# Requires bash 4, coreutils, grep, sed, tar, gzip, python3, and curl or wget. Environment variables:
#   CGD_MIRROR=URL        mirror that is tried first for every file, as URL/<file name>
#   CGD_STALL=60          seconds without data after which a connection is closed
#   MXNET_GLUON_REPO=URL  server of Gluon's weights, as in MXNet; others are tried after it
#   MXNET_HOME=FOLDER     parent of the model folder, as in MXNet
set -o pipefail
shopt -s globstar nullglob

root=$(dirname -- "${BASH_SOURCE[0]}")
data=$root/data
models=${MXNET_HOME:-$HOME/.mxnet}/models
zoo=${MXNET_GLUON_REPO:-https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com}
zoo=${zoo%/}
china=https://apache-mxnet.s3.cn-north-1.amazonaws.com.cn
imgclsmob=https://github.com/osmr/imgclsmob/releases/download
released=CGD.CUB200.C_concat_MG.ResNet50v.dim1536

# Rows of the table below: weights of Gluon's zoo and GluonCV, and of osmr/imgclsmob; in zips, with their SHA-1.
of_zoo() { # NAME, SHA-1
    local file=$1-${2:0:8}.zip server row="$1-${2:0:8}.zip|-|params $2|"
    for server in "$zoo" https://apache-mxnet.s3.amazonaws.com "$china"; do
        row+="$server/gluon/models/$file "
    done
    echo "${row% }"
}

of_imgclsmob() { # NAME, SHA-1, RELEASE
    echo "$1-${2:0:8}.params.zip|-|params $2|$imgclsmob/$3/$1-${2:0:8}.params.zip"
}

# file | size in bytes, - if unknown | expected output of `contents` | addresses, tried in this order
# None of the addresses could be tested; the form of the Google Drive address is a guess.
table() {
    cat <<TABLE
CUB_200_2011.tgz|1150585339|md5 97eceeb196236b17998738112f37df78|https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz
car_ims.tgz|-|md5 d5c8f0aa497503f355e17dc7886c3f14|http://imagenet.stanford.edu/internal/car196/car_ims.tgz
cars_annos.mat|-|md5 b407c6086d669747186bd1d764ff9dbc|http://imagenet.stanford.edu/internal/car196/cars_annos.mat
Stanford_Online_Products.zip|-|md5 7f73d41a2f44250d4779881525aea32e|http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&confirm=t
list_eval_partition.txt|-|rows 52712 announced: 25882 train, 14218 query, 12612 gallery, 0 other|
img.zip|-|zip intact|
$released.tar.gz|-|git 636fe4286699aed108c1becfa8ce6aec376670f9|https://raw.githubusercontent.com/naver/cgd/master/checkpoints/$released.tar.gz https://github.com/naver/cgd/raw/master/checkpoints/$released.tar.gz
$(of_zoo resnet50_v1 0aee57f96768c0a2d5b23a6ec91eb08dfb0a45ce)
$(of_zoo resnet50_v1 cc729d95031ca98cf2ff362eb57dee4d9994e4b2)
$(of_zoo resnet50_v1b 0ecdba34691be172036ddf244ff1b2eade75ffde)
resnet50-v1-7.onnx|102583340|sha256 af16a04a6ec48ac494065d4439fe9dea590d337b9ca6dc328160ccf04a217b9c|https://huggingface.co/onnxmodelzoo/legacy_models/resolve/main/validated/vision/classification/resnet/model/resnet50-v1-7.onnx
$(of_imgclsmob resnet50-0604 a71d1d2a8e8e4259742bbd67c386623233b57c6c v0.0.329)
$(of_imgclsmob seresnet50-0560 e75ef498abfc021f356378b2c806de8927287fe7 v0.0.441)
$(of_imgclsmob bninception-0754 75225419bae387931f6c8ccc19dc48fb1cc8cdae v0.0.405)
$(of_imgclsmob shufflenetv2_w1-1123 27435039ab7794c86ceab11bd93a19a5ecab78d2 v0.0.133)
TABLE
}

sets="cub200|cars196|sop|inshop|checkpoint|weights|demo"
backbones="resnet50_v1|resnet50_v1_onnx|resnet50_v1_imgclsmob|resnet50_v1b|se_resnet50|bn_inception|shufflenet_v2"
usage="usage: bash download.sh NAME..., with NAME one of: ${sets//|/ }
weights may be followed by names of weights, by default resnet50_v1: ${backbones//|/ }"
again="and run this again"
if_none="try again later, or put the file there by hand or set CGD_MIRROR to a mirror, $again"
if_no_cars="get car_ims.tgz and cars_annos.mat (copies exist on Kaggle and Hugging Face), put both into $data, $again"
if_no_inshop="get img.zip and list_eval_partition.txt of the In-shop Clothes Retrieval Benchmark from \
https://drive.google.com/drive/folders/0B7EVK8r0v71pVDZFQXRsMDZCX1E, put both into $data, $again"

if_no_zoo="try again later, or: bash download.sh weights resnet50_v1_onnx, which has another server; or set CGD_MIRROR \
or MXNET_GLUON_REPO to a mirror, $again"

fail() {
    echo "error: $*" >&2
    exit 2
}

python() { # CODE, ARGUMENT...
    python3 -I -c "$@" # -I: does not import modules from the current folder
}

# Prints the checksum or summary, of kind KIND, of the copy of FILE at PATH. `git` is the hash of git hash-object,
# `params` the SHA-1 of the weights inside a zip.
contents() { # KIND, PATH, FILE
    case $1 in
    md5) md5sum <"$2" | cut -c 1-32 ;;
    sha256) sha256sum <"$2" | cut -c 1-64 ;;
    git) { printf 'blob %s\0' "$(wc -c <"$2")" && cat -- "$2"; } | sha1sum | cut -c 1-40 ;;
    params) python '
import hashlib, sys, zipfile
name = sys.argv[2].replace(".params", "").replace(".zip", ".params")
print(hashlib.sha1(zipfile.ZipFile(sys.argv[1]).read(name)).hexdigest())' "$2" "$3" ;;
    zip) python 'import sys, zipfile; print(zipfile.ZipFile(sys.argv[1]).testzip() and "corrupt" or "intact")' "$2" ;;
    rows) python '
import collections, sys
first, header, *rows = [line.split() for line in open(sys.argv[1], encoding="utf-8")]
assert header == ["image_name", "item_id", "evaluation_status"]
count = collections.Counter(row[-1] if len(row) == 3 else "" for row in rows if row)
numbers = ["{} {}".format(count.pop(kind, 0), kind) for kind in ("train", "query", "gallery")]
print("{} announced: {}, {} other".format(first[0], ", ".join(numbers), sum(count.values())))' "$2" ;;
    esac 2>/dev/null || echo "not readable"
}

# Prints how the file at PATH differs from the table; nothing if it matches. Uses the variables of `fetch`.
problem() { # PATH
    local size found
    size=$(wc -c <"$1")
    [ "$bytes" = - ] || [ "$size" = "$bytes" ] || { echo "$size bytes, expected $bytes" && return; }
    found="${check%% *} $(contents "${check%% *}" "$1" "$file")"
    [ "$found" = "$check" ] || echo "$found, expected $check"
}

# Makes a second download.sh end that would write into the same FOLDER, as long as this one runs.
locked=
only_one() { # FOLDER
    local lock
    case $locked in *"|$1|"*) return ;; esac
    command -v flock >/dev/null || return 0
    exec {lock}<"$1" && flock -n "$lock" || fail "$1: another download.sh is at work there; wait for its end"
    locked+="|$1|"
}

# Sets `archive` to a verified copy of FILE: FOLDER/FILE if the user has put it there, otherwise a download. Downloads
# are always named FOLDER/FILE.part, so that a file without .part is the user's.
fetch() { # FILE, FOLDER, ADVICE IF IT CANNOT BE DOWNLOADED
    local file=$1 bytes check addresses address wrong
    IFS='|' read -r _ bytes check addresses < <(table | grep "^$file|")
    read -ra addresses <<<"$addresses"
    [ -z "$CGD_MIRROR" ] || addresses=("${CGD_MIRROR%/}/$file" "${addresses[@]}")
    archive=$2/$file
    mkdir -p -- "$2" || fail "$2: cannot be created"
    only_one "$2"
    if [ -e "$archive" ]; then
        wrong=$(problem "$archive")
        [ -z "$wrong" ] || fail "$archive: $wrong; replace or delete this file, $again"
        return
    fi
    archive=$2/$file.part
    [ -s "$archive" ] && [ -z "$(problem "$archive")" ] && return
    for address in "${addresses[@]}"; do
        echo "downloading $file from $address"
        fetch_from "$address" && return
    done
    fail "$2/$file: could not be downloaded; $3"
}

# Downloads from one address. A partial file of an earlier run or of another address may belong to a different file: if
# the resumed download is wrong, it is downloaded once more from the start.
fetch_from() { # ADDRESS
    local resumed='' wrong
    [ -s "$archive" ] && resumed=yes
    transfer "$1" || return
    wrong=$(problem "$archive")
    [ -n "$wrong" ] || return 0
    echo "$1: $wrong" >&2
    rm -f -- "$archive"
    [ -n "$resumed" ] && fetch_from "$1"
}

# Downloads ADDRESS to `archive`, resuming a partial file; retries up to 4 times if the connection is lost.
transfer() { # ADDRESS
    local try result
    for try in 1 2 3 4 5; do
        [ "$try" = 1 ] || sleep 1
        if command -v curl >/dev/null; then
            result=$(curl -fL "$([ -t 2 ] && echo -# || echo -sS)" -C - -o "$archive" -w '%{http_code}' \
                --connect-timeout 15 --speed-limit 1 --speed-time "${CGD_STALL:-60}" -- "$1")
            result=curl-$?-$result
        else
            wget "$([ -t 2 ] && echo --progress=bar || echo -nv)" -c -O "$archive" \
                --tries=1 --connect-timeout=15 --read-timeout="${CGD_STALL:-60}" -- "$1"
            result=wget-$?
        fi
        [ -s "$archive" ] || rm -f -- "$archive" # wget creates an empty file on errors such as 404
        case $result in
        curl-0-* | curl-22-416 | wget-0) return 0 ;; # 416: the partial file is already complete
        curl-23-* | wget-3) fail "$archive: cannot be written (is the disk full?); free space $again" ;;
        curl-33-*) rm -f -- "$archive" ;; # the server does not support resuming
        curl-[67]-* | curl-22-* | wget-8) return 1 ;; # unknown host, no connection, errors such as 404
        esac
    done
    return 1
}

# Unpacks `archive` into FOLDER; other files are copied. Neither tar nor zipfile writes outside FOLDER.
unpack() { # FOLDER
    local name=${archive%.part} reason
    echo "unpacking $archive"
    case $name in
    *.tgz | *.tar.gz) reason=$(tar -xzf "$archive" -C "$1" --no-same-owner 2>&1 | sed /xiting/d | tail -n 1) ;;
    *.zip) reason=$(python3 -I -m zipfile -e "$archive" "$1" 2>&1 | tail -n 1) ;;
    *) reason=$(cp -- "$archive" "$1/${name##*/}" 2>&1) ;;
    esac || fail "$archive: cannot be unpacked (${reason:-unknown reason}); if the disk is full, free space, $again"
}

# Creates the temporary folder `temporary` next to TARGET; complete results are renamed to TARGET by `put`. What a
# download.sh that was killed has left there is removed: none is at work now, where there are locks.
beside() { # TARGET
    [ -z "$locked" ] || rm -rf -- "$1".unpacking.*
    temporary=$(mktemp -d "$1.unpacking.XXXXXX") || fail "$1: cannot be written"
    temporaries+=("$temporary")
}

put() { # WHAT, TARGET
    [ -e "$1" ] || fail "$archive: does not contain ${2##*/}"
    mv -T -- "$1" "$2" || fail "$2: cannot be written"
    echo "ready: $2"
}

exists() { # TARGET
    [ -e "$1" ] && echo "already exists: $1"
}

# Creates data/NAME from all FILEs. INSIDE is . if the archives contain the folder NAME, NAME if only its content.
folder() { # NAME, INSIDE, ADVICE IF A FILE CANNOT BE DOWNLOADED, FILE...
    local name=$1 inside=$2 if_missing=$3 file missing copies=()
    shift 3
    exists "$data/$name" && return
    for file; do
        fetch "$file" "$data" "$if_missing"
        copies+=("$archive")
    done
    beside "$data/$name"
    mkdir -p -- "$temporary/$inside"
    for archive in "${copies[@]}"; do
        unpack "$temporary/$inside"
    done
    missing=$(missing_images "$temporary/$name")
    [ -n "$missing" ] || put "$temporary/$name" "$data/$name"
    (cd -- "$data" && rm -f -- "${@/%/.part}")
    [ -z "$missing" ] || fail "$archive: $missing; $if_missing"
}

# No checksum of In-shop's zip is known; instead, the images that its list names must exist.
missing_images() { # FOLDER
    [ ! -e "$1/list_eval_partition.txt" ] || python 'import os, sys
names = [line.split()[0] for line in open(sys.argv[1] + "/list_eval_partition.txt", encoding="utf-8") if line.strip()]
missing = [name for name in names[2:] if not os.path.isfile(os.path.join(sys.argv[1], name))]
if missing:
    print("{} of the listed images are missing, the first of them {}".format(len(missing), missing[0]))' "$1"
}

# Extracts each FOLDER/RESULT from the archive FILE, at any depth.
files() { # FILE, FOLDER, ADVICE IF IT CANNOT BE DOWNLOADED, RESULT...
    local file=$1 folder=$2 advice=$3 result missing='' found
    shift 3
    # A file without an archive is verified where it already exists, as archives are.
    [ "$1" != "$file" ] || [ ! -e "$folder/$file" ] || fetch "$file" "$folder" "$advice"
    for result; do
        exists "$folder/$result" || missing=yes
    done
    [ -n "$missing" ] || return 0
    fetch "$file" "$folder" "$advice"
    beside "$folder/$file"
    unpack "$temporary"
    for result; do
        found=("$temporary"/**/"$result")
        [ -e "$folder/$result" ] || put "${found[0]}" "$folder/$result"
    done
    rm -f -- "$folder/$file.part"
}

# Weights in MXNet's model folder, and the flags of train.py that use them.
weights() { # NAME
    case $1 in
    resnet50_v1)
        files resnet50_v1-0aee57f9.zip "$models" "$if_no_zoo" resnet50_v1-0aee57f9.params
        files resnet50_v1-cc729d95.zip "$models" "$if_no_zoo" resnet50_v1-cc729d95.params
        echo "train.py uses MXNet's weights; to use GluonCV's: --backbone-params $models/resnet50_v1-cc729d95.params"
        ;;
    resnet50_v1_onnx)
        files resnet50-v1-7.onnx "$models" "$if_none" resnet50-v1-7.onnx
        echo "to use them: train.py --backbone-params $models/resnet50-v1-7.onnx"
        ;;
    resnet50_v1_imgclsmob)
        files resnet50-0604-a71d1d2a.params.zip "$models" "$if_none" resnet50-0604-a71d1d2a.params
        echo "to use them: train.py --backbone-params $models/resnet50-0604-a71d1d2a.params"
        ;;
    resnet50_v1b) files resnet50_v1b-0ecdba34.zip "$models" "$if_none" resnet50_v1b-0ecdba34.params ;;
    se_resnet50) files seresnet50-0560-e75ef498.params.zip "$models" "$if_none" seresnet50-0560-e75ef498.params ;;
    bn_inception) files bninception-0754-75225419.params.zip "$models" "$if_none" bninception-0754-75225419.params ;;
    shufflenet_v2)
        files shufflenetv2_w1-1123-27435039.params.zip "$models" "$if_none" shufflenetv2_w1-1123-27435039.params
        ;;
    esac
}

demo() {
    local interpreter=python3
    exists "$data/demo" && return
    [ -x "$root/.venv/bin/python" ] && interpreter=.venv/bin/python
    (cd -- "$root" && "$interpreter" -m cgd.data.birds --data-dir data/demo) ||
        fail "$data/demo: could not be drawn; run make demo instead"
}

temporaries=()
trap 'rm -rf -- "${temporaries[@]}"' EXIT
trap 'echo interrupted >&2; exit 130' INT
trap 'exit 143' TERM HUP
trap '' XFSZ # exceeding a file size limit is then a write error, like a full disk

[[ " $* " != *" --help "* ]] || { echo "$usage" && exit; }
allowed=$sets
[ $# -gt 0 ] || fail "no name given; ${usage//$'\n'/; }"
for name; do
    [[ $name =~ ^($allowed)$ ]] || fail "unknown name '$name'; ${usage//$'\n'/; }"
    [[ $name =~ ^(weights|$backbones)$ ]] && allowed="$sets|$backbones" || allowed=$sets
done
command -v python3 >/dev/null || fail "python3 is needed, but not installed"
command -v curl >/dev/null || command -v wget >/dev/null || fail "curl or wget is needed, but neither is installed"
for name; do
    shift
    case $name in
    cub200) folder CUB_200_2011 . "$if_none" CUB_200_2011.tgz ;;
    sop) folder Stanford_Online_Products . "$if_none" Stanford_Online_Products.zip ;;
    cars196) folder Cars196 Cars196 "$if_no_cars" cars_annos.mat car_ims.tgz ;;
    inshop) folder In-shop In-shop "$if_no_inshop" list_eval_partition.txt img.zip ;;
    checkpoint)
        files "$released.tar.gz" "$root/checkpoints" "$if_none" "$released-symbol.json" "$released-0000.params"
        ;;
    demo) demo ;;
    weights) [[ ${1-} =~ ^($backbones)$ ]] || weights resnet50_v1 ;;
    *) weights "$name" ;;
    esac
done
