"""The papers that docstrings name by their arXiv numbers, as BibTeX."""

import re

_PAPERS = (
    # Language and diffusion
    ("1508.07909", "sennrich2015subword", "Neural Machine Translation of Rare Words with Subword Units",
     "Sennrich, Rico and Haddow, Barry and Birch, Alexandra"),
    ("2010.02502", "song2020ddim", "Denoising Diffusion Implicit Models",
     "Song, Jiaming and Meng, Chenlin and Ermon, Stefano"),
    ("2108.01073", "meng2021sdedit",
     "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
     "Meng, Chenlin and He, Yutong and Song, Yang and Song, Jiaming and Wu, Jiajun and Zhu, Jun-Yan and "
     "Ermon, Stefano"),
    ("2202.00512", "salimans2022progressive", "Progressive Distillation for Fast Sampling of Diffusion Models",
     "Salimans, Tim and Ho, Jonathan"),
    ("2207.12598", "ho2022classifierfree", "Classifier-Free Diffusion Guidance", "Ho, Jonathan and Salimans, Tim"),
    ("2208.12242", "ruiz2022dreambooth",
     "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation",
     "Ruiz, Nataniel and Li, Yuanzhen and Jampani, Varun and Pritch, Yael and Rubinstein, Michael and Aberman, Kfir"),
    ("2305.08891", "lin2023common", "Common Diffusion Noise Schedules and Sample Steps are Flawed",
     "Lin, Shanchuan and Liu, Bingchen and Li, Jiashi and Yang, Xiao"),
    ("2106.09685", "hu2021lora", "LoRA: Low-Rank Adaptation of Large Language Models",
     "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean and "
     "Wang, Lu and Chen, Weizhu"),
    ("2311.18828", "yin2023dmd", "One-step Diffusion with Distribution Matching Distillation",
     r"Yin, Tianwei and Gharbi, Micha{\"e}l and Zhang, Richard and Shechtman, Eli and Durand, Fr{\'e}do and "
     "Freeman, William T. and Park, Taesung"),
    ("2405.14867", "yin2024dmd2", "Improved Distribution Matching Distillation for Fast Image Synthesis",
     r"Yin, Tianwei and Gharbi, Micha{\"e}l and Park, Taesung and Zhang, Richard and Shechtman, Eli and "
     r"Durand, Fr{\'e}do and Freeman, William T."),
    ("2412.02687", "nguyen2024snoopi", "SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance",
     "Nguyen, Viet and Nguyen, Anh and Dao, Trung and Nguyen, Khoi and Pham, Cuong and Tran, Toan and Tran, Anh"),
    ("2502.15681", "xu2025fdistill", "One-step Diffusion Models with $f$-Divergence Distribution Matching",
     "Xu, Yilun and Nie, Weili and Vahdat, Arash"),
    # Priors
    ("2112.10752", "rombach2021ldm", "High-Resolution Image Synthesis with Latent Diffusion Models",
     r"Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, Bj{\"o}rn"),
    ("2206.00364", "karras2022edm", "Elucidating the Design Space of Diffusion-Based Generative Models",
     "Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli"),
    ("2503.07274", "jensen2025agd", "Efficient Distillation of Classifier-Free Guidance using Adapters",
     "Perez Jensen, Cristian and Sadat, Seyedmorteza"),
    ("2208.01618", "gal2022textualinversion",
     "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion",
     "Gal, Rinon and Alaluf, Yuval and Atzmon, Yuval and Patashnik, Or and Bermano, Amit H. and Chechik, Gal and "
     "Cohen-Or, Daniel"),
    ("2302.05543", "zhang2023controlnet", "Adding Conditional Control to Text-to-Image Diffusion Models",
     "Zhang, Lvmin and Rao, Anyi and Agrawala, Maneesh"),
    ("2303.11328", "liu2023zero123", "Zero-1-to-3: Zero-shot One Image to 3D Object",
     "Liu, Ruoshi and Wu, Rundi and Van Hoorick, Basile and Tokmakov, Pavel and Zakharov, Sergey and Vondrick, Carl"),
    ("2307.01952", "podell2023sdxl", "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis",
     r"Podell, Dustin and English, Zion and Lacey, Kyle and Blattmann, Andreas and Dockhorn, Tim and M{\"u}ller, Jonas "
     "and Penna, Joe and Rombach, Robin"),
    ("2308.06721", "ye2023ipadapter",
     "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models",
     "Ye, Hu and Zhang, Jun and Liu, Sibo and Han, Xiao and Yang, Wei"),
    ("2310.04378", "luo2023lcm",
     "Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference",
     "Luo, Simian and Tan, Yiqin and Huang, Longbo and Li, Jian and Zhao, Hang"),
    ("2403.03206", "esser2024sd3", "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
     r"Esser, Patrick and Kulal, Sumith and Blattmann, Andreas and Entezari, Rahim and M{\"u}ller, Jonas and "
     "Saini, Harry and Levi, Yam and Lorenz, Dominik and Sauer, Axel and Boesel, Frederic and Podell, Dustin and "
     "Dockhorn, Tim and English, Zion and Lacey, Kyle and Goodwin, Alex and Marek, Yannik and Rombach, Robin"),
    # Score distillation
    ("2209.14988", "poole2022dreamfusion", "DreamFusion: Text-to-3D using 2D Diffusion",
     "Poole, Ben and Jain, Ajay and Barron, Jonathan T. and Mildenhall, Ben"),
    ("2211.10440", "lin2022magic3d", "Magic3D: High-Resolution Text-to-3D Content Creation",
     "Lin, Chen-Hsuan and Gao, Jun and Tang, Luming and Takikawa, Towaki and Zeng, Xiaohui and Huang, Xun and "
     "Kreis, Karsten and Fidler, Sanja and Liu, Ming-Yu and Lin, Tsung-Yi"),
    ("2212.00774", "wang2022sjc",
     "Score Jacobian Chaining: Lifting Pretrained 2D Diffusion Models for 3D Generation",
     "Wang, Haochen and Du, Xiaodan and Li, Jiahao and Yeh, Raymond A. and Shakhnarovich, Greg"),
    ("2303.15413", "hong2023debiasing",
     "Debiasing Scores and Prompts of 2D Diffusion for View-consistent Text-to-3D Generation",
     "Hong, Susung and Ahn, Donghoon and Kim, Seungryong"),
    ("2304.04968", "armandpour2023perpneg",
     "Re-imagine the Negative Prompt Algorithm: Transform 2D Diffusion into 3D, alleviate Janus problem and Beyond",
     "Armandpour, Mohammadreza and Sadeghian, Ali and Zheng, Huangjie and Sadeghian, Amir and Zhou, Mingyuan"),
    ("2304.07090", "hertz2023dds", "Delta Denoising Score",
     "Hertz, Amir and Aberman, Kfir and Cohen-Or, Daniel"),
    ("2305.16213", "wang2023prolificdreamer",
     "ProlificDreamer: High-Fidelity and Diverse Text-to-3D Generation with Variational Score Distillation",
     "Wang, Zhengyi and Lu, Cheng and Wang, Yikai and Bao, Fan and Li, Chongxuan and Su, Hang and Zhu, Jun"),
    ("2308.16512", "shi2023mvdream", "MVDream: Multi-view Diffusion for 3D Generation",
     "Shi, Yichun and Wang, Peng and Ye, Jianglong and Mai, Long and Li, Kejie and Yang, Xiao"),
    ("2310.08529", "yi2023gaussiandreamer",
     "GaussianDreamer: Fast Generation from Text to 3D Gaussians by Bridging 2D and 3D Diffusion Models",
     "Yi, Taoran and Fang, Jiemin and Wang, Junjie and Wu, Guanjun and Xie, Lingxi and Zhang, Xiaopeng and "
     "Liu, Wenyu and Tian, Qi and Wang, Xinggang"),
    ("2310.16818", "sun2023dreamcraft3d",
     "DreamCraft3D: Hierarchical 3D Generation with Bootstrapped Diffusion Prior",
     "Sun, Jingxiang and Zhang, Bo and Shao, Ruizhi and Wang, Lizhen and Liu, Wen and Xie, Zhenda and Liu, Yebin"),
    ("2310.17590", "katzir2023nfsd", "Noise-Free Score Distillation",
     "Katzir, Oren and Patashnik, Or and Cohen-Or, Daniel and Lischinski, Dani"),
    ("2310.19415", "yu2023csd", "Text-to-3D with Classifier Score Distillation",
     "Yu, Xin and Guo, Yuan-Chen and Li, Yangguang and Liang, Ding and Zhang, Song-Hai and Qi, Xiaojuan"),
    ("2311.11284", "liang2023luciddreamer",
     "LucidDreamer: Towards High-Fidelity Text-to-3D Generation via Interval Score Matching",
     "Liang, Yixun and Yang, Xin and Lin, Jiantao and Li, Haodong and Xu, Xiaogang and Chen, Yingcong"),
    ("2311.13831", "koo2023pds", "Posterior Distillation Sampling",
     "Koo, Juil and Park, Chanho and Sung, Minhyuk"),
    ("2312.02189", "guo2023stabledreamer",
     "StableDreamer: Taming Noisy Score Distillation Sampling for Text-to-3D",
     "Guo, Pengsheng and Hao, Hans and Caccavale, Adam and Ren, Zhongzheng and Zhang, Edward and Shan, Qi and "
     "Sankar, Aditya and Schwing, Alexander G. and Colburn, Alex and Ma, Fangchang"),
    ("2401.09050", "wu2024consistent3d",
     "Consistent3D: Towards Consistent High-Fidelity Text-to-3D Generation with Deterministic Sampling Prior",
     "Wu, Zike and Zhou, Pan and Yi, Xuanyu and Yuan, Xiaoding and Zhang, Hanwang"),
    ("2405.15891", "lukoianov2024sdi", "Score Distillation via Reparametrized DDIM",
     r"Lukoianov, Artem and {S{\'a}ez de Oc{\'a}riz Borde}, Haitz and Greenewald, Kristjan and "
     "Guizilini, Vitor Campagnolo and Bagautdinov, Timur and Sitzmann, Vincent and Solomon, Justin"),
    ("2407.02040", "ma2024scaledreamer",
     "ScaleDreamer: Scalable Text-to-3D Synthesis with Asynchronous Score Distillation",
     "Ma, Zhiyuan and Wei, Yuxiang and Zhang, Yabin and Zhu, Xiangyu and Lei, Zhen and Zhang, Lei"),
    ("2407.12291", "jiang2024jointdreamer",
     "JointDreamer: Ensuring Geometry Consistency and Text Congruence in Text-to-3D Generation via Joint Score "
     "Distillation",
     "Jiang, Chenhan and Zeng, Yihan and Hu, Tianyang and Xu, Songcun and Zhang, Wei and Xu, Hang and Yeung, Dit-Yan"),
    ("2408.05008", "li2024flowdreamer",
     "FlowDreamer: Exploring High Fidelity Text-to-3D Generation via Rectified Flow",
     "Li, Hangyu and Chu, Xiangxiang and Shi, Dingyuan and Lin, Wang"),
    ("2411.01602", "cheng2024dreampolish",
     "DreamPolish: Domain Score Distillation With Progressive Geometry Generation",
     "Cheng, Yean and Cai, Ziqi and Ding, Ming and Zheng, Wendi and Huang, Shiyu and Dong, Yuxiao and Tang, Jie and "
     "Shi, Boxin"),
    # Representations
    ("2112.05131", "yu2021plenoxels", "Plenoxels: Radiance Fields without Neural Networks",
     "Yu, Alex and Fridovich-Keil, Sara and Tancik, Matthew and Chen, Qinhong and Recht, Benjamin and "
     "Kanazawa, Angjoo"),
    ("2201.05989", "mueller2022instantngp",
     "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding",
     r"M{\"u}ller, Thomas and Evans, Alex and Schied, Christoph and Keller, Alexander"),
    ("2308.04079", "kerbl2023gaussians", "3D Gaussian Splatting for Real-Time Radiance Field Rendering",
     r"Kerbl, Bernhard and Kopanas, Georgios and Leimk{\"u}hler, Thomas and Drettakis, George"),
    ("2404.06109", "rotabulo2024densification", "Revising Densification in Gaussian Splatting",
     r"{Rota Bul{\`o}}, Samuel and Porzi, Lorenzo and Kontschieder, Peter"),
)  # fmt: skip
"""arXiv number, key, title, authors. The year is that of the number."""


def _entry(number: str, key: str, title: str, authors: str) -> str:
    fields = {
        "title": f"{{{title}}}",
        "author": authors,
        "year": f"20{number[:2]}",
        "eprint": number,
        "archivePrefix": "arXiv",
    }
    lines = "\n".join(f"  {name} = {{{value}}}," for name, value in fields.items())
    return f"@misc{{{key},\n{lines}\n}}\n"


BIBTEX: dict[str, str] = {paper[0]: _entry(*paper) for paper in _PAPERS}
"""BibTeX entries by arXiv number."""


def arxiv_numbers(text: str | None) -> list[str]:
    """The arXiv numbers that a text names, each once, in order."""
    return list(dict.fromkeys(re.findall(r"(?<![\d.])\d{4}\.\d{5}(?!\d)", text or "")))
