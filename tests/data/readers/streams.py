"""Streams that no encoder of the test environment writes, 16 x 16 pixels.

Made by imagecodecs 2026.3.6: ``htj2k_encode`` (OpenJPH 0.26.3) of ``slice_hu(0, 16) + 1024`` as uint16 and of
``slice_hu(0, 16)`` as int16, both reversible; of ``smooth_codes(16)`` with ``level=0.002``; and ``jpeg8_encode``
(libjpeg-turbo 3.1.3) of ``smooth_codes(16)`` with ``level=98, bitspersample=12``.
"""

from base64 import b85decode

HTJ2K_UNSIGNED = b85decode(
    "|4;u>04YEK0000G0000G00000000000000G0000G0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&"
    "kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00001x&Q(HlfVEbpZWy{bN~Rr024p}6F>kH0Lu6S2Xp|e`2z=Z"
    "0FM3whjakI02NRG1yle5RPiC9k7w=x!IS`@QUin}@BxQ30K}X_Q6BUGhO_{{02cHB0dBwm7U)Ql18`-fPA0WfAn=y!JCGn=-eDas"
    "=L^b6KoOS!PC}M+vcBRJQWRUkUmJ#)qL>pfM*xvXj9_Y*0Qw{#FuGU$N3wK_LzjP45A@qhUWzRN=7>NtmjJ*3FHnF0Ua0^8y)1!1"
    "cXpssm5iyc%VFlzq8oY-5a@#>WroPj0!V@K;5YQsGv;PeWkVqj^3f?p%^WUpcOC{Sqk%D?TEqdDz+|R&c)ucisSAb&VGw{P)B%5-"
    "A-UCJ!HWHn0?Iw}!>(oW>!urg10$=z#FDBY&VT4-C&h^e7rg{(esPZC17}U}FH5{KR{&hU*a2CeE&c$6pQ4Xr!WBcv5cEU=6d-`d"
    ")BytmniV);SgSO6(s$Qox|WtMT{I;b2_bYSe`#mq@+?!Y)kAiJSjJ};2*5ARLBQPUQTCV?{Q$8Aqp8F5n}4q*VGs_JApj@T0sq+"
)

HTJ2K_SIGNED = b85decode(
    "|4;u>04YEK0000G0000G00000000000000G0000G000000000000EBy0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&"
    "kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00001x&Q(HlfVEbpZ)>|bN~Rr024p}6F>kH0Lu6S2Xp|e`2z=Z"
    "0FM3whjakI02NRG1yle5RPiC9k7w=x!IS`@QUin}@BxQ30K}X_Q6BUGhO_{{02cHB0dBwm7U)Ql18`-fPA0WfAn=y!JCGn=-eDas"
    "=L^b6KoOS!PC}M+vcBRJQWRUkUmJ#)qL>pfM*xvXj9_Y*0Qw{#FuGU$N3wK_LzjP45A@qhUWzRN=7>NtmjJ*3FHnF0Ua0^8y)1!1"
    "cXpssm5iyc%VFlzq8oY-5a@#>WroPj0!V@K;5YQsGv;PeWkVqj^3f?p%^WUpcOC{Sqk%D?TEqdDz+|R&c)ucisSAb&VGw{P)B%5-"
    "A-UCJ!HWHn0?Iw}!>(oW>!urg10$=z#FDBY&VT4-C&h^e7rg{(esPZC17}U}FH5{KR{&hU*a2CeE&c$6pQ4Xr!WBcv5cEU=6d-`d"
    ")BytmniV);SgSO6(s$Qox|WtMT{I;b2_bYSe`#mq@+?!Y)kAiJSjJ};2*5ARLBQPUQTCV?{Q$8Aqp8F5n}4q*VGs_JApj@T0sq+"
)

HTJ2K_LOSSY = b85decode(
    "|4;u>04YEK0000G0000G00000000000000G0000G0000000000009pH0sl|{2mk^A001NZQUDA90ssL31q1{@0RLP7BO-rve?@;q"
    "e;0RLcU*TpZ>n#qZ^BqLST$I9P#RDgU%&rk02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000aR34TlfVF!(*y@}006)NEC3R~"
    "0Vv`C2Xp}900(pc`~b&v0Kfuh08Ic1KyFw708{|OSpWc30C0yhlK{X9hyhUmB!Ix@gUe7=004>agpvJa0RG}r0KgK!5`g)@3l#wV"
    "06LWb|Je"
)

JPEG_12 = b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV009930RaI40RaI40RaI40s#R50RaL50RaL60s;a80s;a90|WyD0|NsB0s{mC0|W#F1Ox&D"
    "1qB2I1q1{H1pmPR3k(1d01yEI5di<h02KfM0RR910000000000000004gbUd9uNQk1_J>B0000000000000330|f>L1PBWW0RP$m"
    "2mt{A06zeVAIGPUPK)<Z(Rz!~e?{sjh2JW>;uuqx2MNm}5)74;a6vqin8#SA5fK$Wb{6B)qWmkgUfuLx&Weg5NJ^;)hHT}%!VJiS"
    "e<c+g&{HIaDbXoJ1O-2wdV33KzY6UasJ!U(UfqaN5~@NWg$8hMoV}qR$wfx=6UI4AMT}7a0Z->)Zo=9x-A6_3-#R?#w_+E3s_%$q"
    "!JFIQ&uB<8R#CwPF^E!;6BtB9RQvzg"
)
