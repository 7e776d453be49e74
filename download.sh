#!/usr/bin/env bash
# Fetches data sets and weights, checks them, and unpacks them into data/, checkpoints/ and MXNet's folder of models.
#
# Needs bash 4, coreutils, grep, sed, tar, gzip, python3, and curl or wget. A file that somebody has put where it is to
# be downloaded to is checked and used instead, and kept. In the environment:
#   CGD_MIRROR=URL        is tried first for every file, as URL/<file name>
#   CGD_STALL=60          seconds without a byte after which a connection is given up
#   MXNET_GLUON_REPO=URL  is where Gluon's weights come from, MXNET_HOME=FOLDER where they go, as in MXNet itself
set -o pipefail
shopt -s globstar nullglob

root=$(dirname -- "${BASH_SOURCE[0]}")
data=$root/data
models=${MXNET_HOME:-$HOME/.mxnet}/models
zoo=${MXNET_GLUON_REPO:-https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com}
zoo=${zoo%/}
released=CGD.CUB200.C_concat_MG.ResNet50v.dim1536

# file | bytes, - if not known | what `contents` must say of it | addresses, tried in this order
# None of the addresses could be tried where this was written; the form of Google Drive's is a guess.
table() {
    cat <<TABLE
CUB_200_2011.tgz|1150585339|md5 97eceeb196236b17998738112f37df78|https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz
car_ims.tgz|-|md5 d5c8f0aa497503f355e17dc7886c3f14|http://imagenet.stanford.edu/internal/car196/car_ims.tgz
cars_annos.mat|-|md5 b407c6086d669747186bd1d764ff9dbc|http://imagenet.stanford.edu/internal/car196/cars_annos.mat
Stanford_Online_Products.zip|-|md5 7f73d41a2f44250d4779881525aea32e|http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&confirm=t
list_eval_partition.txt|-|rows 52712 announced: 25882 train, 14218 query, 12612 gallery, 0 other|
img.zip|-|zip whole|
$released.tar.gz|-|git 636fe4286699aed108c1becfa8ce6aec376670f9|https://raw.githubusercontent.com/naver/cgd/master/checkpoints/$released.tar.gz https://github.com/naver/cgd/raw/master/checkpoints/$released.tar.gz
resnet50_v1-0aee57f9.zip|-|params 0aee57f96768c0a2d5b23a6ec91eb08dfb0a45ce|$zoo/gluon/models/resnet50_v1-0aee57f9.zip https://apache-mxnet.s3.amazonaws.com/gluon/models/resnet50_v1-0aee57f9.zip
resnet50_v1-cc729d95.zip|-|params cc729d95031ca98cf2ff362eb57dee4d9994e4b2|$zoo/gluon/models/resnet50_v1-cc729d95.zip https://apache-mxnet.s3.amazonaws.com/gluon/models/resnet50_v1-cc729d95.zip
TABLE
}

usage="usage: bash download.sh NAME..., with NAME one of: cub200 cars196 sop inshop checkpoint weights demo"
again="and run this again"
if_none="try later, or put it there by hand, or name a mirror by CGD_MIRROR, $again"
if_no_cars="get car_ims.tgz and cars_annos.mat (copies exist on Kaggle and Hugging Face), put both into $data, $again"
if_no_inshop="get In-shop Clothes Retrieval Benchmark's img.zip and list_eval_partition.txt from \
https://drive.google.com/drive/folders/0B7EVK8r0v71pVDZFQXRsMDZCX1E, put both into $data, $again"

fail() {
    echo "error: $*" >&2
    exit 2
}

python() { # CODE, ARGUMENT...
    python3 -I -c "$@" # -I: whatever folder this is run in, its files are no modules
}

# What the table's FILE holds at PATH. `git` is the sum of git hash-object; `params` that of the weights inside a zip.
contents() { # KIND, PATH, FILE
    case $1 in
    md5) md5sum <"$2" | cut -c 1-32 ;;
    git) { printf 'blob %s\0' "$(wc -c <"$2")" && cat -- "$2"; } | sha1sum | cut -c 1-40 ;;
    params) python '
import hashlib, sys, zipfile
print(hashlib.sha1(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2])).hexdigest())' "$2" "${3%.zip}.params" ;;
    zip) python 'import sys, zipfile; print(zipfile.ZipFile(sys.argv[1]).testzip() and "broken" or "whole")' "$2" ;;
    rows) python '
import collections, sys
first, header, *rows = [line.split() for line in open(sys.argv[1], encoding="utf-8")]
assert header == ["image_name", "item_id", "evaluation_status"]
count = collections.Counter(row[-1] if len(row) == 3 else "" for row in rows if row)
numbers = ["{} {}".format(count.pop(kind, 0), kind) for kind in ("train", "query", "gallery")]
print("{} announced: {}, {} other".format(first[0], ", ".join(numbers), sum(count.values())))' "$2" ;;
    esac 2>/dev/null || echo "not readable"
}

# What is wrong with the file at PATH; nothing if it is what the table says. Reads the variables of `fetch`.
problem() { # PATH
    local size found
    size=$(wc -c <"$1")
    [ "$bytes" = - ] || [ "$size" = "$bytes" ] || { echo "$size bytes, expected $bytes" && return; }
    found="${check%% *} $(contents "${check%% *}" "$1" "$file")"
    [ "$found" = "$check" ] || echo "$found, expected $check"
}

# Sets `archive` to a checked copy of FILE: the one put into FOLDER by hand, or else a download, FOLDER/FILE.part. That
# name it keeps even when it is whole, so that a file without .part is always the user's.
fetch() { # FILE, FOLDER, WHAT TO DO WITHOUT IT
    local file=$1 bytes check addresses address wrong
    IFS='|' read -r _ bytes check addresses < <(table | grep "^$file|")
    read -ra addresses <<<"$addresses"
    [ -z "$CGD_MIRROR" ] || addresses=("${CGD_MIRROR%/}/$file" "${addresses[@]}")
    archive=$2/$file
    if [ -e "$archive" ]; then
        wrong=$(problem "$archive")
        [ -z "$wrong" ] || fail "$archive: $wrong; put the right file there or delete it, $again"
        return
    fi
    archive=$2/$file.part
    [ -s "$archive" ] && [ -z "$(problem "$archive")" ] && return
    mkdir -p -- "$2" || fail "$2: cannot be made"
    for address in "${addresses[@]}"; do
        echo "$file: from $address"
        fetch_from "$address" && return
    done
    fail "$2/$file: no address gave it; $3"
}

# What an earlier run or another address left may be part of another file: if it comes out wrong, once more without it.
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

# Brings `archive` to the end of what ADDRESS has; goes on a few times where the connection broke off.
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
        [ -s "$archive" ] || rm -f -- "$archive" # wget makes an empty file of an answer like 404
        case $result in
        curl-0-* | curl-22-416 | wget-0) return 0 ;; # 416: there is nothing beyond the part
        curl-23-* | wget-3) fail "$archive: cannot be written (is the disk full?); make room $again" ;;
        curl-33-*) rm -f -- "$archive" ;; # this server cannot go on from somewhere
        curl-[67]-* | curl-22-* | wget-8) return 1 ;; # no such host, no connection, an answer like 404
        esac
    done
    return 1
}

# Unpacks `archive` into FOLDER, or copies what is no archive. Neither tar nor zipfile writes outside FOLDER.
unpack() { # FOLDER
    local name=${archive%.part} reason
    echo "unpacking $archive"
    case $name in
    *.tgz | *.tar.gz) reason=$(tar -xzf "$archive" -C "$1" --no-same-owner 2>&1 | sed /xiting/d | tail -n 1) ;;
    *.zip) reason=$(python3 -I -m zipfile -e "$archive" "$1" 2>&1 | tail -n 1) ;;
    *) reason=$(cp -- "$archive" "$1/${name##*/}" 2>&1) ;;
    esac || fail "$archive: cannot be unpacked (${reason:-no reason given}); if the disk is full make room, $again"
}

# A folder beside TARGET: what is made in it takes TARGET's name, by `put`, when it is whole.
beside() { # TARGET
    temporary=$(mktemp -d "$1.XXXXXX") || fail "$1: cannot be written"
    temporaries+=("$temporary")
}

put() { # WHAT, TARGET
    [ -e "$1" ] || fail "$archive: holds no ${2##*/}"
    mv -T -- "$1" "$2" || fail "$2: cannot be written"
    echo "ready: $2"
}

there() { # TARGET
    [ -e "$1" ] && echo "there already: $1"
}

# data/NAME out of all the FILEs. INSIDE is . if the archive holds the folder NAME, and NAME if it holds its contents.
folder() { # NAME, INSIDE, WHAT TO DO WITHOUT A FILE, FILE...
    local name=$1 inside=$2 if_missing=$3 file missing copies=()
    shift 3
    there "$data/$name" && return
    for file; do
        fetch "$file" "$data" "$if_missing"
        copies+=("$archive")
    done
    beside "$data/$name"
    mkdir -p -- "$temporary/$inside"
    for archive in "${copies[@]}"; do
        unpack "$temporary/$inside"
    done
    missing=$(missing_pictures "$temporary/$name")
    [ -n "$missing" ] || put "$temporary/$name" "$data/$name"
    (cd -- "$data" && rm -f -- "${@/%/.part}")
    [ -z "$missing" ] || fail "$archive: $missing; $if_missing"
}

# In-shop's zip has no checksum to be right by; its list says what has to be in it.
missing_pictures() { # FOLDER
    [ ! -e "$1/list_eval_partition.txt" ] || python 'import os, sys
names = [line.split()[0] for line in open(sys.argv[1] + "/list_eval_partition.txt", encoding="utf-8") if line.strip()]
missing = [name for name in names[2:] if not os.path.isfile(os.path.join(sys.argv[1], name))]
if missing:
    print("{} of the listed pictures are missing, the first is {}".format(len(missing), missing[0]))' "$1"
}

# FOLDER/RESULT... out of the archive FILE, at whatever depth they are in it.
files() { # FILE, FOLDER, RESULT...
    local file=$1 folder=$2 result missing='' found
    shift 2
    for result; do
        there "$folder/$result" || missing=yes
    done
    [ -n "$missing" ] || return 0
    fetch "$file" "$folder" "$if_none"
    beside "$folder/$file"
    unpack "$temporary"
    for result; do
        found=("$temporary"/**/"$result")
        [ -e "$folder/$result" ] || put "${found[0]}" "$folder/$result"
    done
    rm -f -- "$folder/$file.part"
}

demo() {
    local interpreter=python3
    there "$data/demo" && return
    [ -x "$root/.venv/bin/python" ] && interpreter=.venv/bin/python
    (cd -- "$root" && "$interpreter" -m cgd.data.birds --data-dir data/demo) || fail "$data/demo: not drawn; use make demo"
}

temporaries=()
trap 'rm -rf -- "${temporaries[@]}"' EXIT
trap 'echo interrupted >&2; exit 130' INT
trap 'exit 143' TERM HUP
trap '' XFSZ # a limit on the size of files is then an error of writing, like a full disk

for name in "${@:-}"; do
    [[ $name =~ ^(cub200|cars196|sop|inshop|checkpoint|weights|demo)$ ]] || fail "no such name: '$name'; $usage"
done
command -v python3 >/dev/null || fail "python3 is needed, and is not here"
command -v curl >/dev/null || command -v wget >/dev/null || fail "curl or wget is needed, and neither is here"
for name; do
    case $name in
    cub200) folder CUB_200_2011 . "$if_none" CUB_200_2011.tgz ;;
    sop) folder Stanford_Online_Products . "$if_none" Stanford_Online_Products.zip ;;
    cars196) folder Cars196 Cars196 "$if_no_cars" cars_annos.mat car_ims.tgz ;;
    inshop) folder In-shop In-shop "$if_no_inshop" list_eval_partition.txt img.zip ;;
    checkpoint) files "$released.tar.gz" "$root/checkpoints" "$released-symbol.json" "$released-0000.params" ;;
    weights)
        files resnet50_v1-0aee57f9.zip "$models" resnet50_v1-0aee57f9.params
        files resnet50_v1-cc729d95.zip "$models" resnet50_v1-cc729d95.params
        echo "train.py uses MXNet's; for GluonCV's: --backbone-params $models/resnet50_v1-cc729d95.params"
        ;;
    demo) demo ;;
    esac
done
