#!/usr/bin/env bash
# The models of models/imagenet: the files are what their generator writes, have the parameters that their headers name
# (torchvision's numbers), and each job fits its model.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
m=$PL_SOURCE_DIR/models/imagenet
/usr/bin/python3 "$m/make_models.py" --check || fail "make_models.py --check"
while read -r name parameters; do
    "$PACELINE" inspect "$m/$name-model.yaml" >out 2>&1 || { fail "inspect $name-model.yaml"; cat out; }
    grep -qF "model $name, $parameters parameters" out || { fail "wanted $parameters parameters"; head -n 1 out; }
    sed '/^name:/q' "$m/$name-model.yaml" | tr '\n#' '  ' | tr -d , | grep -qE "$parameters +parameters" ||
        fail "$name-model.yaml: its header does not say $parameters parameters"
    "$PACELINE" inspect "$m/$name.yaml" >out 2>&1 || { fail "inspect $name.yaml"; cat out; }
    side=$(sed -nE 's/^input: .*, ([0-9]+)\].*/\1/p' "$m/$name-model.yaml")
    [ "$(grep -c "augment: {crop: $side[,}]" "$m/$name.yaml")" -eq 2 ] || fail "$name.yaml: crops are not $side"
done <<'LIST'
alexnet 61100840
overfeat 145920872
vgg_a 132863336
googlenet 13378280
inception_v3 27161264
resnet50 25557032
LIST
cp -r "$m" . && sed -i 's/units: 1000/units: 10/' imagenet/alexnet-model.yaml
imagenet/make_models.py --check >out 2>&1 && fail "make_models.py --check takes another file"
grep -q "alexnet-model.yaml: not what" out || { fail "wanted alexnet-model.yaml to be named"; cat out; }
finish
