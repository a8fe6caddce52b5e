"""Small HEIC files: pictures that x265 wrote without loss, in boxes that are written here."""

import base64
import struct
import zlib

import numpy as np

# Units of HEVC, each behind its length, packed: the picture of `ramp` in 8 bits, RGB; 12 bits, RGB;
# 10 bits, grey.
_UNITS = {
    8: (
        b"c-jHg11kIg000<30Sp2E{{#pC00RJ?2mk;B0094)iUL3Y001gN0RaRE00093o(KQ{0{{U3kQoTF%*9o<*Ea$J00a"
        b"O40{{d700RI7AOHXW2t)zFa4=($AOHXZdnf^~1-Nrr(i)Hd`bNeVa7fZU2L07m58T4>hNKbEVW|dJumAtpR=@xH{"
        b"dS34LDUYuO9>?9Wp17?6+~&`@l;2GbN~4yzyJI**(fHvJp+e^Uj$kZhClv!j=~uK`Q|xkwt)SuWn93|4ypP21jq3"
        b"707}8(!{>OzIze>{9;J@I`u^qs3Rdfw1gS>s78~d`J@gvP006w9dt!-42F|6#9xqqIA=Uo*8pq%U<tLWcguZ#^kB"
        b"O!O+q3`!*QckTL_4_4s)C4)tm%L-aK08H{|`MKA6uH2(TKKo|61Y={MP7%A=nxLu9`De$N=KTA!d5KJzRn*!~j3X"
        b"{eF@4Um|tjm0Ivht)7IC81w4TvAPU>=jT&>z&p-PJ=ChoDZG~-CeM>Dkk$Y!*-}%L)Zys_9#8d8C;12f3sW(IL?>"
        b"*gWx%N>)|3FxxkZ1qH4iMAZ$wk}8Gr%h+La)MGed9xJ4(E_06<#CQ?VDZ#}t-_V}T*y04VEz|Fj_lFNus1Vo&{QH"
        b"|Jm`fDoj_m;=qqD6qT%M}GZ40Df@<FV4F9{xT^dr`iA_Y2NjAtJ*&IygQ7qT3`V+WcY3-K2e!rDN8=Uv_e&cKmY+"
        b"GG-NilX+o-o{(@=SWB?DIR*-z~3YZs^^oUph3hvFVT43+K`kE0D<b*8GU;_T=O&Fin32)*6175QTwDS0I#<L(RvT"
        b"s-bD$kacIp&>=ebs!OfB;7jId#i+8qr+)N_}Eo00eUQ1$HzKLBnSq;d}rJ-sZ-eQP<0Gb{f^)m!JT~AM|S}x+a7="
        b"aMg=|0(u&rK|1zPM6;JRH*PnY5G~)pSi&k;Ip?GR1;06j1y%x1PldS4Atj3ufCId@+G>qplLY7}z*H1pd@{!CwgP"
        b"gD#48jJ4x|7=NbCf^`2Hr!p7prs+%)h2LWZDY0y}TG@pik$8(rMJ)c`Lq$qn;K1~<#V0lz?meTbCzjexQS@l<R83"
        b"tK3FgQHL$0^SC5bO3rkw)}>TVTJ{}rM%byNWNJChi0S)?8F`fwEz>LAN$P0XrhNI84V`RfB{@}^I2>kg;~V0-hTi"
        b"T5OC!X3>6t#HMl~A2=D=YP|P1oDbAtY(z_>s7|8?e$cJTHjg6;aIk2z-6{L!tY={dUuWJ`f04IUl>Zw_C&o<*{w>"
        b"Z9Fz|^(Z"
    ),
    12: (
        b"c-mFceKZq#7zgm*HsmdKGcW0IQW975c1bpwD>t`tZ_)J@wMyX-lD9~AOPzL2!X`AK;(EC#Da=cobYwzw<aL)AGeq"
        b"0U7&gDV?)~eY&pF@ooacGY^Vb6aFmOd^A|O;!1po!||4jhzQ<1I!082Ln;{SuJ?W$Doo(`XeVMinqD1B@G7dsW}s"
        b"_uwamu-Tx6}8f!IpV1@(`5Fwn)`DI#o1604DS%+QLtAa^MMnq@(|c7l=+e-pgfe+E0hc2P@-ITPaCf3)I%tzb#27"
        b"SmpJ-~(W^v4{MS{ONs>wt8e}x{Q6N=U5jloUKUNhk3t*iV2|{P~W)fkY2H$nc50XYhWizCKVR<f896tz0qZP;hjf"
        b"u69*o~8D<>KlZxkGVB!n9l9%D{8(%CKW6>$kY$PA6Nb{cYjDLVFBCAn+yO5=7#=(GKKSmP_~fXKjvcze~S?-xq@O"
        b"e3n1IJ97}NOd2G@n}YR<%*uEnPwu(JY4f2U`;o*pWhpt8wMoIBdH57(!54}&GSz5PI}TV^gF1#=p&7%C;j$Vy9@W"
        b"|`P^)EdqluKy1}F_S+L5~?;(hU_&*YTTXXw*Kxyb>{vX4oEqR2)w@{Nis>Y#Z!%Om$nP-WjxdRV`cU3QrdcIqwW!"
        b"Nr;iJ@#pjmkEfDc`f44INMFb^j&I2%`Z%lsi9B0^pdG)ylKGPVs_}gG@h(Y9iG-+r@{<MXLl2&lGsG4C1lH5=6A<"
        b";(}rki{)gAV9v5RB(WjMB&bctNBc#4L`z{)B#ltVxyKmI!4B<k2;s;58t<sK)2nS`X)3%%wm_^;Mm_^LOTOD&xVo"
        b"cH<PEU%zUnvJ!zzKHJ3~{D!M{@=g_His%^hbz}t$({OAIII~nNBO7tbBbQifu_jLz3zuoxYmrFyfH<Rj-M9!Q;LD"
        b"C#O8Z(uOc|XD!HRRsm|jW%&utA>Yd1?hh+}EARR4a%@(E?PEg|qW%~gM6L`Mjp^4{j!JvVdfGk9ddmLNs=zVSLz("
        b"on{oE)rFn8f-%VN1BbAz{QshCR#RD300Qq8~AE?C^s|6ow^=A5zw=?8$uN96qEPl;;<eD%16L|)uN+$?i!I=rvS?"
        b"rJ&p$Q~&`SPE2}Cp#Su<sXT2jdP8a#7cA@_{MlB8%`P{xRFhmVjF;DcLYnTe>Wv)7BRJ$T8(EKPmivKj>pD#qiS)"
        b"|r(<n^9?J}g=RffN1+j57aL+Xb&vu*U_D|N!d8Rpe4kv&^%k9|9=eaf52$hxnb8i$H5PnucO=RN?ZdArpJ}@Z!ie"
        b"=eH2M(u{QZC(aS8#5xt2p||h8}309%#+f?gA+IiYRA87g$cpBzSH5ZDM2}$K}t(>_Z}LjT`_hj6R8lr@~vX#!iuk"
        b"hj#W|#Cz3KSux69#^0~KmR1S07%4!t^ZL@YKPO9P222F3<dIGm*{1?~A%iWhS`9^y*Xe;>69)rgW}_CVB^UP3sgC"
        b"Syz&0ZfSkKIg+9uibo2i?g(r|#<@v_D78FqHtVt>XDcP=SJ(Dd+g!qU_r{+1yAb$}=tS8XYLH)9#q>wF3?RuDCgj"
        b"c|h_B`R4!B@5+2BO`2P3##Ai*z$7kiWhB*#R}Ok+_tLPM+|Q@&D(0$hAOYqNx&OX5?aHL$&PJP_|EjjEjx6V1yOe"
        b"kQCACSvP6f*Kd+w0=P|UYnx_<e)rOae?^DBgR4FeV4IDQDU^sDX?_vpmp3nW}1L1^`YrHli={_T=T>1|iHlH5"
    ),
    10: (
        b"c-muNV32TN<YD~(pM`^gftg|M2@uKfe`Xhx0|Nttx)UQKs>ESM;nbO3t8>@ofQ2ChNGY2O<H5q6LO|9Q4aRlc1qO"
        b"KsPyYY^%EH&xIk`^tzfR6K-ABbhGVOr+nx)%-Bna<+pXs3e?dR|ED)pPInV!_<ZO{vJZ@ScF=_+K;)4;$G@@`_eo"
        b"ygX$pT)Uua~T%wf6J%)Kk5G*83yLX4tMAOVllbG&$rWa&WATKy-S*&7#7;}9WMlGGb&xO>kOyY6~@?xT;8cS1eX<"
        b"r^cuKz=P|Ij%Uk!0<mI^P#|ItY`ua^=`QnEiH=;8c>;di)V%-"
    ),
}
HEIGHT, WIDTH = 16, 24
_PARAMETERS = (32, 33, 34)
_SET = 33


def ramp(bits: int) -> np.ndarray:
    """The pixels: (H, W, 3), or (H, W, 1) of 10 bits."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    top = (1 << bits) - 1
    planes = [
        x * top // (WIDTH - 1),
        y * top // (HEIGHT - 1),
        (x + y) * top // (WIDTH + HEIGHT - 2),
    ]
    return np.stack(planes[: 1 if bits == 10 else 3], -1).astype(
        np.uint8 if bits == 8 else np.uint16
    )


def box(name: bytes, *parts: bytes) -> bytes:
    """A box of ISO base media."""
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + name + body


def full(name: bytes, version: int, *parts: bytes) -> bytes:
    """A box with a version."""
    return box(name, struct.pack(">I", version << 24), *parts)


def units(bits: int) -> list[bytes]:
    """The units of HEVC."""
    data, at, found = zlib.decompress(base64.b85decode(_UNITS[bits])), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def heic(
    bits: int,
    turned: int | None = None,
    mirrored: int | None = None,
    sides: tuple[int, int] = (WIDTH, HEIGHT),
    more: tuple[bytes, ...] = (),
) -> bytes:
    """The file; `turned` to the left so often, then `mirrored`: 0 top and bottom, 1 left and
    right.
    """
    grey = bits == 10
    kinds = [(unit[0] >> 1 & 63, unit) for unit in units(bits)]
    sets = [unit for kind, unit in kinds if kind in _PARAMETERS]
    picture = b"".join(struct.pack(">I", len(u)) + u for k, u in kinds if k not in _PARAMETERS)
    parts = 1 if grey else 3
    properties = [
        box(b"hvcC", _settings(sets, bits, 0 if grey else 3)),
        full(b"ispe", 0, struct.pack(">II", *sides)),
        full(b"pixi", 0, bytes([parts, *[bits] * parts])),
    ]
    if not grey:
        properties.append(box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 0, 0x80)))
    properties += [box(b"irot", bytes([turned]))] if turned is not None else []
    properties += [box(b"imir", bytes([mirrored]))] if mirrored is not None else []
    properties += more
    head = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    size = len(_meta(properties, 0, len(picture)))
    meta = _meta(properties, len(head) + size + 8, len(picture))
    return head + meta + box(b"mdat", picture)


def _settings(sets: list[bytes], bits: int, chroma: int) -> bytes:
    (plain,) = (s.replace(b"\0\0\3", b"\0\0") for s in sets if s[0] >> 1 & 63 == _SET)
    depth = 0xF8 | bits - 8
    head = (
        b"\1"
        + plain[3:15]
        + struct.pack(">HBBBBHB", 0xF000, 0xFC, 0xFC | chroma, depth, depth, 0, 15)
    )
    arrays = (bytes([0x80 | s[0] >> 1 & 63]) + struct.pack(">HH", 1, len(s)) + s for s in sets)
    return head + bytes([len(sets)]) + b"".join(arrays)


def _meta(properties: list[bytes], at: int, size: int) -> bytes:
    """What the one image is, and where it lies."""
    uses = bytes(0x80 | i + 1 for i in range(min(100, len(properties))))
    return full(
        b"meta",
        0,
        full(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
        full(b"pitm", 0, struct.pack(">H", 1)),
        full(b"iloc", 0, b"\x44\0", struct.pack(">HHHHII", 1, 1, 0, 1, at, size)),
        full(
            b"iinf", 0, struct.pack(">H", 1), full(b"infe", 2, struct.pack(">HH", 1, 0), b"hvc1\0")
        ),
        box(
            b"iprp",
            box(b"ipco", *properties),
            full(b"ipma", 0, struct.pack(">IHB", 1, 1, len(uses)), uses),
        ),
    )
